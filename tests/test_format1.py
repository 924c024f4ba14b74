"""Files written by edm2lite 0.1.0 (``data/format1``) are read and continued by today's code.

The oracle is what 0.1.0 itself wrote: its averages, its images, and the rest of its run. Bits are
equal where torch and processor are those of that day. Elsewhere sums are rounded in another order:
with one thread in place of two, or without vector instructions, the weights at the end of the run
differ by 4e-8 of their norm.
"""

import json
import platform
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch.torch_version import TorchVersion

from edm2lite.models.loading import load
from edm2lite.tensorfile import load_tensors, verify
from edm2lite.tools.edm2lite import main as edm2lite
from edm2lite.tools.reconstruct_ema import main as reconstruct_ema
from edm2lite.training.config import load_config
from edm2lite.training.trainer import Trainer

STORED = Path(__file__).parent / "data" / "format1"
RUN = STORED / "run"
MADE_WITH = json.loads((STORED / "made_with.json").read_text())
ROUNDING = 1e-6  # of the norm, where bits may differ


def is_same_machine():
    cpuinfo = Path("/proc/cpuinfo")
    names = cpuinfo.read_text() if cpuinfo.is_file() else platform.processor()
    here = torch.backends.cpu.get_cpu_capability(), torch.__version__
    return here == (MADE_WITH["instructions"], MADE_WITH["torch"]) and any(
        line.partition(":")[2].strip() == MADE_WITH["cpu"] for line in names.splitlines()
    )


def assert_equal_tensors(path, stored, *, exact):
    tensors, expected = load_tensors(path)[0], load_tensors(stored)[0]
    assert tensors.keys() == expected.keys()
    if exact:
        assert all(tensors[name].equal(expected[name]) for name in expected), path
        return
    error, norm = 0.0, 0.0
    for name, value in expected.items():
        error += (tensors[name].double() - value.double()).square().sum().item()
        norm += value.double().square().sum().item()
    assert error < ROUNDING**2 * norm, path


def call(command, *words):
    result = CliRunner().invoke(command, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


def pixels(folder):
    return {p.name: np.asarray(Image.open(p)).astype(int) for p in sorted(folder.rglob("*.png"))}


@pytest.fixture
def two_threads():
    torch.set_num_threads(MADE_WITH["threads"])
    yield
    torch.set_num_threads(1)


def test_every_file_is_intact():
    files = sorted(STORED.rglob("*.safetensors"))
    assert len(files) == 9
    for path in files:
        verify(path)
    call(edm2lite, "snapshots", RUN)  # exit code 0: no problem found


@pytest.mark.parametrize(
    "name, nimg, sigma_rel",
    [
        ("run/last.safetensors", "48", None),
        ("run/snapshots/ema-0.10000-0000000032.safetensors", "32", "0.1"),
        ("export", "48", "0.1"),
        ("ema/ema-0.12000-0000000048.safetensors", "48", "0.12"),
    ],
)
def test_models_are_loaded(name, nimg, sigma_rel):
    model = load(STORED / name)
    assert model.metadata["nimg"] == nimg and model.metadata.get("sigma_rel") == sigma_rel
    path = STORED / name
    stored = load_tensors(path / "model.safetensors" if path.is_dir() else path)[0]
    loaded = model.net.state_dict()
    assert stored.keys() == loaded.keys()
    assert all(loaded[name].equal(value) for name, value in stored.items())


def test_an_average_of_the_run_is_the_exported_one():
    rebuilt = load(f"{RUN}@sigma_rel=0.1").net.state_dict()
    exported = load(STORED / "export").net.state_dict()
    assert rebuilt.keys() == exported.keys()
    for name, value in exported.items():
        torch.testing.assert_close(rebuilt[name], value, rtol=1e-6, atol=1e-7, msg=name)


def test_a_reconstruction_is_verified():
    file = STORED / "ema" / "ema-0.12000-0000000048.safetensors"
    call(reconstruct_ema, RUN, "--verify", file)  # exit code 0: as rebuilt from the snapshots


def test_the_stored_images_are_generated_again(tmp_path):
    """0.1.0 drew classes and noise from the seeds, and sampled: all of that is unchanged."""
    out = tmp_path / "images"
    call(edm2lite, "generate", STORED / "export", "--seeds", "0-3", "--steps", 4, "--out", out)
    stored, drawn = pixels(STORED / "images"), pixels(out)
    assert drawn.keys() == stored.keys() and len(stored) == 4
    for name, image in stored.items():
        assert np.abs(drawn[name] - image).max() <= (0 if is_same_machine() else 1)
    classes = json.loads((out / "dataset.json").read_text())
    assert classes == json.loads((STORED / "images" / "dataset.json").read_text())


def test_a_folder_of_images_is_continued(tmp_path):
    out = tmp_path / "images"
    shutil.copytree(STORED / "images", out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}
    settings = json.loads((out / "settings.json").read_text())
    # 0.1.0 hashed the coefficients, whose last digits depend on the processor.
    ours = load(f"{RUN}@sigma_rel=0.1").earlier_identity
    (out / "settings.json").write_text(json.dumps({**settings, "weights": ours}))
    call(edm2lite, "generate", f"{RUN}@sigma_rel=0.1", "--seeds", "0-5", "--steps", 4, "--out", out)
    after = {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}
    assert {p: t for p, t in after.items() if p in before} == before
    assert sorted(p.stem for p in after.keys() - before.keys()) == ["000004", "000005"]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.skipif(
    TorchVersion(torch.__version__) < MADE_WITH["torch"].partition("+")[0],
    reason="a checkpoint is not always read by a torch older than the one that wrote it",
)
def test_a_run_is_resumed_and_ends_as_it_did(tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(RUN, folder)
    later = [*sorted(folder.glob("snapshots/*[34][28].safetensors")), folder / "last.safetensors"]
    assert len(later) == 5  # all that the run wrote after its checkpoint at 24
    for path in later:
        path.unlink()
    Trainer(load_config(str(folder)), folder, torch.device("cpu")).train()
    for path in later:
        stored = RUN / path.relative_to(folder)
        assert_equal_tensors(path, stored, exact=is_same_machine())
        assert load_tensors(path)[1].keys() >= {"format", "run", "nimg"}
    stats = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    assert [line["nimg"] for line in stats] == [16, 32, 48]
