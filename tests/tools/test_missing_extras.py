"""A package that is missing is found before the work, and a picture is not worth losing it."""

import sys

import pytest
import torch
from click.testing import CliRunner

from edm2lite.extras import NEEDED, require
from edm2lite.tools.edm2lite import main as edm2lite

ONE_LINE = "Error: plots need matplotlib; pip install 'edm2lite[metrics]'\n"
NOTE = "no picture: plots need matplotlib; pip install 'edm2lite[metrics]'"


def run(*words):
    return CliRunner().invoke(edm2lite, [str(word) for word in words])


@pytest.fixture(autouse=True)
def _without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # what a missing package looks like
    monkeypatch.chdir(tmp_path)


def refuse(*_, **__):
    raise AssertionError("the work has begun")


def test_toy_does_not_train_for_a_picture_that_it_cannot_draw(monkeypatch):
    monkeypatch.setattr("edm2lite.toy.experiment.compare", refuse)
    result = run("toy", "--out", "mine.png")
    assert (result.exit_code, result.output) == (1, ONE_LINE)


def test_toy_without_matplotlib_still_prints_its_table(monkeypatch, tmp_path):
    def compare(classes, num, *_):
        return {"no guidance": classes[0].sample(num, torch.Generator().manual_seed(0))}

    monkeypatch.setattr("edm2lite.toy.experiment.compare", compare)
    result = run("toy", "--num", 64)
    assert result.exit_code == 0 and result.stderr.splitlines()[0] == NOTE, result.output
    assert "% covered" in result.stdout and "no guidance" in result.stdout
    assert "png" not in result.stdout and not list(tmp_path.iterdir())


def test_plot_objective_without_matplotlib_prints_its_table():
    result = run("plot-objective", "digits")
    assert result.exit_code == 0 and NOTE in result.stderr and "median" in result.stdout
    result = run("plot-objective", "digits", "--out", "mine.png")
    assert (result.exit_code, result.output) == (1, ONE_LINE)


def test_magnitudes_are_not_measured_for_a_picture_that_cannot_be_drawn(run_dir, monkeypatch):
    monkeypatch.setattr("edm2lite.diffusion.measure.measure_denoiser", refuse)
    monkeypatch.setattr("edm2lite.models.loading.load", refuse)
    result = run("magnitudes", run_dir, "--out", "mine.png")
    assert (result.exit_code, result.output) == (1, ONE_LINE)


def test_a_grid_of_two_models_is_refused_before_they_generate(run_dir, tmp_path, monkeypatch):
    names = (run_dir, f"{run_dir}@sigma_rel=0.1")
    words = ("--seeds", "0-1", "--steps", 1, "--out", tmp_path / "images", "--grid", "grid.png")
    result = run("generate", *names, *words)
    assert (result.exit_code, result.output) == (1, ONE_LINE) and not list(tmp_path.iterdir())
    assert run("generate", names[1], *words).exit_code == 0  # one row needs no matplotlib
    assert (tmp_path / "grid.png").is_file()


def test_ema_units_says_so_before_its_table():
    words = ("ema-units", "--sigma-rel", 0.1)
    result = run(*words, "--plot", "mine.png")
    assert (result.exit_code, result.output) == (1, ONE_LINE)
    assert run(*words).exit_code == 0


@pytest.mark.parametrize("module", NEEDED)
def test_every_extra_is_named_by_the_same_words(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"; pip install 'edm2lite\[[a-z]+\]'$"):
        require(module)
