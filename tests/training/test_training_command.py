"""The training command: dry runs, and mistakes in one line before anything is written."""

import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tiny_run import tiny_config
from training_runs import arguments

from edm2lite.diffusion.objective import DenoisingLoss
from edm2lite.diffusion.precond import Precond
from edm2lite.ema import list_snapshots
from edm2lite.tensorfile import read_header
from edm2lite.training.__main__ import main
from edm2lite.training.config import load_config
from edm2lite.training.dry_run import activation_bytes, report


def value(text, row):
    return re.search(rf"^{row} +(.*)$", text, re.M)[1]


def number(text):
    """``14.5 MB`` -> 14.5e6."""
    amount, unit = re.match(r"([\d.e+]+) ?([kMGT]?)B", text).groups()
    return float(amount) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[unit]


def test_dry_run_tells_what_the_run_then_is_and_writes_nothing(run_dir, tmp_path):
    done = CliRunner().invoke(main, [*arguments(tmp_path / "a"), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "a").exists()
    text, table = done.output.split("\n\n")
    (tmp_path / "again.yaml").write_text(text)
    assert load_config(str(tmp_path / "again.yaml")) == tiny_config()
    snapshots = list_snapshots(run_dir)
    stored = sum(read_header(info.path).data_bytes for info in snapshots)
    files, size = value(table, "snapshots").split(", ")
    assert files == f"{len(snapshots)} files of float32"
    assert number(size) == pytest.approx(stored, rel=0.02)  # three digits; buffers not counted
    checkpoint = run_dir / "checkpoints" / "000000001280" / "__0_0.distcp"
    # tensors of 16 channels: a seventh of the file describes them
    assert number(value(table, "checkpoints")) == pytest.approx(checkpoint.stat().st_size, rel=0.2)
    num_params = sum(p.numel() for p in Precond(tiny_config().net).parameters())
    assert value(table, "parameters") == str(num_params)
    assert value(table, "steps").startswith("40 of 32 images: 1 x 32")
    parts = re.findall(r"(?:weights|gradients|Adam|averages|activations) ([\d.]+ \wB)", table)
    assert number(value(table, "memory")) == pytest.approx(sum(map(number, parts)), rel=0.02)
    assert [number(p) / num_params for p in parts[:4]] == pytest.approx([4, 4, 8, 8], rel=0.01)
    assert "from the start" in value(table, "run")


def test_dry_run_of_a_finished_run_says_where_it_continues(run_dir):
    assert "continued from nimg = 1280 of 2560" in report(
        tiny_config("total_nimg=2560"), run_dir, 1
    )


def test_sharding_divides_the_state_among_processes(tmp_path):
    one = report(tiny_config(), tmp_path / "a", 4)
    shards = report(tiny_config("parallel=fsdp"), tmp_path / "a", 4)
    weights = [number(re.search(r"weights ([\d.]+ \wB)", t)[1]) for t in (one, shards)]
    assert weights[0] / weights[1] == pytest.approx(4, rel=0.01)
    assert value(one, "steps").startswith("40 of 32 images: 4 x 8")


@pytest.mark.parametrize("dtype, ratio", [("float32", 1), ("bfloat16", 0.55)])
def test_activations_are_the_tensors_that_autograd_keeps(dtype, ratio):
    config = tiny_config(f"net.dtype={dtype}").net
    net = Precond(config)
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    x = torch.randn(6, 1, 8, 8)
    labels = torch.eye(10)[:6]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        DenoisingLoss(net)(x, labels, x[:, 0, 0, 0].exp(), x.clone())
    measured = sum(size for size, _ in kept.values())
    # operations of the CPU may keep a workspace that those without memory do not
    assert activation_bytes(config, 6) == pytest.approx(measured, rel=0.05)
    full = activation_bytes(tiny_config().net, 64)
    assert activation_bytes(config, 64) == pytest.approx(ratio * full, rel=0.15)


MISTAKES = {
    "optim.reflr=1": "unknown key optim.reflr; the nearest known one is optim.ref_lr",
    "optim.ref_lr=fast": "optim.ref_lr must be a number.* got 'fast'",
    "batch_size=30": "total_nimg must be a multiple of batch_size = 30, got 1280; the nearest is",
    "snapshot_nimg=100": "snapshot_nimg must be a multiple of batch_size = 32, got 100",
    "sample_nimg=100": "sample_nimg must be a multiple of batch_size = 32, got 100",
    "data.source=nowhere": "no data set at nowhere",
    "net.backbone.img_channels=3": "img_channels must be the 1 channels of digits, got 3",
    "net.backbone.img_resolution=16": "img_resolution must be the size of the images of digits",
    "net.backbone.label_dim=3": r"must take what digits has \(10 classes\) or less",
    "keep_checkpoints=1": "keep_checkpoints must be at least 2, got 1",
    "optim.loss_scale=0": "optim: loss_scale must be positive, got 0",
    "parallel=tensor": "parallel must be 'ddp' or 'fsdp'",
    "optim.beta2=1": "optim: beta2 must be at least 0 and below 1, got 1",
    "seed=[": "--set seed=\\[: the value must be YAML",
}


@pytest.mark.parametrize("change", MISTAKES)
@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["run", "dry-run"])
def test_mistakes_get_one_line_and_nothing_is_written(change, more, tmp_path):
    done = CliRunner().invoke(main, [*arguments(tmp_path / "a", change), *more])
    assert done.exit_code == 1
    assert re.search(MISTAKES[change], done.output), done.output
    assert done.output.count("\n") == 1 and done.output.startswith("Error: ")
    assert not (tmp_path / "a").exists()


def test_a_batch_that_does_not_divide_among_processes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="multiple of the number of processes, got 32 for 5"):
        report(tiny_config(), tmp_path / "a", 5)


def test_the_training_page_names_configurations_and_keys_that_exist():
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    calls = re.findall(r"edm2lite\.training (\S+) --out \S+((?: --set \S+)*)", page)
    assert {"CONFIG", "digits", "edm2-img512-s"} <= {config for config, _ in calls}
    for config, sets in calls:
        if config != "CONFIG":
            load_config(config, ["data.source=digits", *re.findall(r"--set (\S+)", sets)])
    keys = re.search(r"\| key \|.*?\n\n", page, re.S)[0]
    names = [
        n for row in re.findall(r"^\| (`.*?) \|", keys, re.M) for n in re.findall(r"`(.*?)`", row)
    ]
    assert len(names) >= 12
    for name in names:
        owner = load_config("digits")
        for part in name.split("."):
            owner = getattr(owner, part)
