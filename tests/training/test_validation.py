"""Validation: the loss on held-out images against the formula, and a run that does not notice."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import tiny_config
from training_runs import arguments, digests, losses, names, run_jobs, stats

from edm2lite.dataset import open_dataset
from edm2lite.diffusion.precond import Precond
from edm2lite.ema import list_snapshots
from edm2lite.tensorfile import load_tensors
from edm2lite.training import Trainer

CPU = torch.device("cpu")
COUNT = 70


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """Seventy of the digits, mirrored, as PNG files."""
    folder = tmp_path_factory.mktemp("held_out")
    digits = open_dataset("digits")
    labels = []
    for i in range(COUNT):
        Image.fromarray(digits.read(i)[0, :, ::-1]).save(folder / f"{i:03d}.png")
        labels.append([f"{i:03d}.png", int(digits.labels[i])])
    text = json.dumps({"labels": labels, "label_dim": 10})
    (folder / "dataset.json").write_text(text)
    return folder


def validation(folder, **options):
    settings = {"data": str(folder), "every": 320, "levels": [0.05, 0.5, 3.0], **options}
    return f"validation={json.dumps(settings)}"


@pytest.fixture(scope="module")
def validated(held_out, tmp_path_factory):
    """A run like that of the fixture ``run_dir``, with validation."""
    folder = tmp_path_factory.mktemp("runs") / "validated"
    Trainer(tiny_config(validation(held_out)), folder, CPU).train()
    return folder


def by_hand(path, held_out, levels):
    """[levels] float64 means of lambda |D_x - y|**2 of the weights in a file, image by image."""
    weights, _ = load_tensors(path)
    net = Precond(tiny_config().net).double().eval()
    net.load_state_dict({name: value.double() for name, value in weights.items()})
    labels = dict(json.loads((held_out / "dataset.json").read_text())["labels"])
    sigma_data, losses = 0.5, []
    for index, file in enumerate(sorted(held_out.glob("*.png"))):
        pixels = np.asarray(Image.open(file), np.float64)
        y = (torch.from_numpy(pixels)[None, None] - 77.83) / 191.79
        # the noise of a sample is Philox with its index as the key; counter 6 is for evaluation
        draw = np.random.Generator(np.random.Philox(key=[index, 0], counter=[0, 0, 0, 6]))
        row = []
        for sigma in levels:
            n = torch.from_numpy(draw.standard_normal((1, 1, 8, 8), dtype=np.float32)).double()
            with torch.no_grad():
                D_x = net(y + sigma * n, sigma, torch.tensor([labels[file.name]]))
            weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
            row.append(weight * (D_x - y).square().mean().item())
        losses.append(row)
    return np.mean(losses, axis=0)


def test_the_loss_is_that_of_the_formula_for_raw_and_averaged_weights(validated, held_out):
    lines = stats(validated)
    assert [line["nimg"] for line in lines] == [320, 640, 960, 1280]
    files = {
        (i.nimg, f"sigma_rel={i.sigma_rel}"): i.path
        for i in list_snapshots(validated)
        if i.nimg in (640, 1280)
    }
    files[1280, "raw"] = validated / "last.safetensors"
    assert len(files) == 5
    for (nimg, name), path in files.items():
        line = next(line for line in lines if line["nimg"] == nimg)
        expected = by_hand(path, held_out, [0.05, 0.5, 3.0])
        found = line["validation_at"][name]
        assert list(found) == ["sigma 0.05", "sigma 0.5", "sigma 3"]
        # the network computes in float32, by hand all is float64
        np.testing.assert_allclose(list(found.values()), expected, rtol=2e-5)
        assert line["validation"][name] == pytest.approx(expected.mean(), rel=2e-5)
    assert list(lines[0]["validation"]) == ["raw", "sigma_rel=0.05", "sigma_rel=0.1"]
    assert lines[-1]["validation"]["raw"] < lines[0]["validation"]["raw"]


def test_the_run_does_not_notice(validated, run_dir):
    assert digests(validated) == digests(run_dir) and losses(validated) == losses(run_dir)
    assert names(validated) == names(run_dir)


def test_batches_and_interruptions_do_not_matter(validated, held_out, tmp_path):
    more = (validation(held_out, every=96), "checkpoint_nimg=192")
    Trainer(tiny_config(*more, "total_nimg=480"), tmp_path / "whole", CPU).train()
    Trainer(tiny_config(*more, "total_nimg=192"), tmp_path / "cut", CPU).train()
    Trainer(tiny_config(*more, "total_nimg=480"), tmp_path / "cut", CPU).train()

    def values(folder):
        return {s["nimg"]: s["validation_at"] for s in stats(folder) if "validation_at" in s}

    assert list(values(tmp_path / "whole")) == [96, 192, 288, 384, 480]
    assert values(tmp_path / "cut") == values(tmp_path / "whole")
    # in smaller batches; sums in another order, and a training that differs by rounding
    Trainer(
        tiny_config(validation(held_out), "microbatch=12", "total_nimg=320"), tmp_path / "b", CPU
    ).train()
    one, other = (flat_values(values(f)[320]) for f in (validated, tmp_path / "b"))
    np.testing.assert_allclose(one, other, rtol=1e-4)


def flat_values(by_average):
    return [v for levels in by_average.values() for v in levels.values()]


@pytest.mark.slow
def test_processes_and_shards_do_not_matter(validated, held_out, tmp_path):
    change = (validation(held_out), "total_nimg=320", "microbatch=16")
    jobs = {"two": (2, []), "sharded": (2, ["parallel=fsdp"]), "three": (3, ["batch_size=48"])}
    more = ["total_nimg=336", "status_nimg=48", "snapshot_nimg=48", "checkpoint_nimg=48"]
    jobs["three"] = (3, ["batch_size=48", *more, validation(held_out, every=336)])
    codes, text = run_jobs(
        *(
            {"args": arguments(tmp_path / name, *change, *extra), "ranks": ranks}
            for name, (ranks, extra) in jobs.items()
        )
    )
    assert codes == [[0] * ranks for ranks, _ in jobs.values()], text
    expected = flat_values(stats(validated)[0]["validation_at"])
    for name in ("two", "sharded"):
        (line,) = stats(tmp_path / name)
        # ten steps whose sums are taken in another order
        np.testing.assert_allclose(flat_values(line["validation_at"]), expected, rtol=1e-4)
    # 70 images in batches of 16 are five batches, of which the third of three ranks has one
    last = stats(tmp_path / "three")[-1]
    found = list(last["validation_at"]["raw"].values())
    by_file = by_hand(tmp_path / "three" / "last.safetensors", held_out, [0.05, 0.5, 3.0])
    np.testing.assert_allclose(found, by_file, rtol=2e-5)


def test_several_held_out_sets_have_names_of_their_own(held_out, tmp_path):
    hooks = [
        {"kind": "validation", "name": n, "data": d, "every": 320, "images": 16}
        for n, d in (("seen", "digits"), ("held_out", str(held_out)))
    ]
    config = tiny_config(f"hooks={json.dumps(hooks)}", "total_nimg=320")
    Trainer(config, tmp_path / "a", CPU).train()
    (line,) = stats(tmp_path / "a")
    assert {"seen", "seen_at", "held_out", "held_out_at"} <= set(line)
    assert line["seen"]["raw"] != line["held_out"]["raw"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"data": "nowhere"}, "no data set at nowhere"),
        ({"levels": []}, r"validation: levels must be positive and finite, got \[\]"),
        ({"levels": [0.1, 0]}, "levels must be positive and finite"),
        ({"images": 0}, "validation.images must be at least 1, got 0"),
        ({"every": 100}, "validation.every must be a multiple of batch_size = 32"),
        ({"imags": 3}, "unknown key validation.imags; the nearest known one is validation.images"),
        ({"kind": "valid"}, "validation.kind must be 'validation'"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(options, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Trainer(tiny_config(validation("digits", **options)), tmp_path / "a", CPU)
    assert not (tmp_path / "a").exists()


def test_held_out_images_that_do_not_fit_are_refused(tmp_path):
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "0.png")
    change = validation(tmp_path)
    with pytest.raises(ValueError, match=r"must be images of \[1, 8, 8\] for this run"):
        Trainer(tiny_config(change), tmp_path / "a", CPU)
    assert not (tmp_path / "a").exists()
