"""The commands that the page of a sweep offers are those that made it, and those that follow."""

import shlex
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from pages import check
from PIL import Image

from edm2lite.dataset import open_dataset
from edm2lite.metrics import statistics
from edm2lite.metrics.digits_classifier import train_classifier
from edm2lite.sampling import Sampling
from edm2lite.sweep import Cell, SweepOptions, sweep_ema
from edm2lite.sweep.commands import generate_command, sweep_command
from edm2lite.tools.edm2lite import main as edm2lite

RUN = Path("runs/a b")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Statistics of the digits; the file with the extractor's weights lies beside it."""
    folder = tmp_path_factory.mktemp("classifier")
    weights = folder / "classifier.safetensors"
    train_classifier(weights, num_epochs=1)
    return statistics("digits", "digits", weights=weights).save(folder / "reference.safetensors")


def parsed(line, monkeypatch):
    """The options that the command understands."""
    found = []

    def stop(options, progress=None):
        found.append(options)
        raise ValueError("stopped")

    monkeypatch.setattr("edm2lite.sweep.run_sweep", stop)
    monkeypatch.setattr(SweepOptions, "claim", lambda self: nullcontext())
    words = shlex.split(line)
    assert words[:2] == ["edm2lite", "sweep"]
    done = CliRunner().invoke(edm2lite, words[1:])
    assert found, done.output
    return found[0]


@pytest.mark.parametrize(
    "options",
    [
        {"sigma_rel": (0.1, 0.2), "ref": Path("a b.npz")},
        {"sigma_rel": (0.1, 0.07654321), "ref": Path("a.npz"), "metric": "kid", "num": 500},
        {"search": True, "span": (0.03, 0.2), "ref": Path("a.npz"), "first_seed": 9},
        {"decay": ["linear:0.2", "cosine:0.1"], "metric": "loss", "data": "held out.zip"},
        {"sigma_rel": (0.1,), "ref": Path("a.npz"), "guidance": [1.0, 1.4], "guide": "runs/b",
         "guide_sigma_rel": [0.05], "sampling": Sampling(num_steps=8), "max_error": 0.1},
        {"sigma_rel": (0.1,), "ref": Path("a.npz"), "at": [640, 1280],
         "conditions": "photos.zip", "weights": Path("w.safetensors")},
        {"sigma_rel": (0.1, 0.2), "ref": Path("a.npz"), "groups": "all"},
    ],
)  # fmt: skip
def test_the_command_of_a_sweep_asks_for_that_sweep(options, monkeypatch):
    asked = SweepOptions(run=RUN, **options)
    found = parsed(sweep_command(asked), monkeypatch)
    for name in ("run", "decay", "search", "span", "metric", "ref", "data", "num", "sampling"):
        assert getattr(found, name) == getattr(asked, name), name
    for name in ("conditions", "first_seed", "guide", "max_error", "groups", "weights"):
        assert getattr(found, name) == getattr(asked, name), name
    for name in ("sigma_rel", "at", "guidance", "guide_sigma_rel"):
        assert list(getattr(found, name)) == list(getattr(asked, name)), name


def test_what_cannot_be_typed_has_no_command():
    digits = open_dataset("digits")
    for changed in (
        {"metric": "loss", "data": digits},
        {"ref": "a.npz", "sampling": Sampling(solver="euler")},
    ):
        assert sweep_command(SweepOptions(run=RUN, sigma_rel=(0.1,), **changed)) == ""
    options = SweepOptions(run=RUN, sigma_rel=(0.1,), ref="a.npz", conditions=digits)
    assert generate_command(options, Cell(0.1, 64), {"classes": ["0"]}) == ""
    options = SweepOptions(run=RUN, sigma_rel=(0.1,), ref="a.npz", groups="all")
    assert generate_command(options, Cell(0.1, 64, group="in", rest_sigma_rel=0.2)) == ""


@pytest.mark.parametrize(
    "cell, options, words",
    [
        (Cell(0.2, 64), {}, "'runs/a b@sigma_rel=0.2' --seeds 0-63 --class all"),
        (Cell(None, 64), {}, "'runs/a b' --seeds 0-63 --class all"),
        (Cell(0.2, 64), {"at": [64, 128]}, "'runs/a b@sigma_rel=0.2,nimg=64' "),
        (Cell(0.2, 64, 1.5, 0.1), {"guide": "runs/b@nimg=32", "guidance": [1.5],
         "guide_sigma_rel": [0.1]}, "--guide runs/b@sigma_rel=0.1,nimg=32 --guidance 1.5"),
        (Cell(0.2, 64, 1.0), {"guide": "unconditional", "guidance": [1, 1.5]}, "--class all"),
        (Cell(0.2, 64), {"conditions": "p.zip", "max_error": 0.1},
         "'runs/a b@sigma_rel=0.2,max_error=0.1' --seeds 0-63 --conditions p.zip"),
    ],
)  # fmt: skip
def test_images_of_a_setting_are_made_by_its_command(cell, options, words):
    asked = SweepOptions(run=RUN, sigma_rel=(0.1, 0.2), ref="a.npz", **options)
    line = generate_command(asked, cell, {"classes": ["class 0", "class 1"]})
    assert words in line and ("--guide" in line) == (cell.guidance != 1)
    check(line)
    decay = SweepOptions(run=RUN, decay=["linear:0.2"], ref="a.npz")
    line = generate_command(decay, Cell(None, 64, decay="linear:0.2"), {"captions": ["red heart"]})
    assert "@decay=linear:0.2" in line and "--prompt 'red heart'" in line
    check(line)


def test_the_command_makes_the_images_that_the_page_shows(run_dir, reference, tmp_path):
    few, weights = Sampling(num_steps=2), reference.parent / "classifier.safetensors"
    sweep = sweep_ema(run_dir, [0.1, 0.2], ref=reference, weights=weights, num=66, sampling=few,
                      out=tmp_path / "sweep")  # fmt: skip
    cell = sweep.best_average.cell
    titles = sweep.measurer.titles(cell, 66)
    assert titles == {"classes": [str(i % 10) for i in range(40)]}  # the names of the digits
    line = generate_command(sweep.options, cell, titles)
    words = shlex.split(line.replace("--grid images.png", f"--out {tmp_path / 'images'}"))
    done = CliRunner().invoke(edm2lite, words[1:])
    assert done.exit_code == 0, done.output
    files = sorted((tmp_path / "images").rglob("*.png"))
    shown = sweep.images()[cell]
    assert len(files) == 64 and len(shown) == 40
    for image, file in zip(shown, files, strict=False):
        assert np.array_equal(np.asarray(Image.open(file)), image[0])
