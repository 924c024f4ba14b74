"""The language model of docs/decay.md at tiny size, and the figures of the page."""

import json
import re
import runpy
import sys

import numpy as np
import pytest
from pages import DOCS
from PIL import Image
from test_examples import LANGUAGE_MODEL, run

from edm2lite.ema import Length
from edm2lite.ema.decays import NamedDecay

PAGE = (DOCS / "decay.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """What the example prints, and the folder that it fills, for one seed."""
    out = tmp_path_factory.mktemp("lm") / "lm"
    return run(LANGUAGE_MODEL, str(out), "--tiny", "--seeds", "5"), out


def test_the_language_model_emulates_what_is_really_decayed(tiny):
    """In 60 steps of a tiny model, gradients hardly depend on the decay: both agree closely."""
    printed, out = tiny
    (losses,) = json.loads((out / "losses.json").read_text())
    emulated = [name for name in losses if name.startswith("emulated")]
    decayed = [name for name in losses if name.startswith("decayed")]
    assert len(emulated) == 10 and len(decayed) == 3 and len(printed.splitlines()) == 15
    for name in decayed:
        real, found = losses[name], losses[name.replace("decayed", "emulated")]
        moved = abs(real - losses["constant rate"])
        assert abs(found - real) < 0.05 * moved + 1e-3
    with Image.open(out / "language-model.png") as picture:
        assert picture.width > 800


def test_batches_depend_on_the_step_alone_and_branches_leave_the_run_alone():
    example = runpy.run_path(str(LANGUAGE_MODEL))
    text = example["texts"]()[1]
    one, other = (example["Training"](0, 16, text) for _ in range(2))
    one.run(6)
    other.run(3)
    branch = other.branch()
    branch.run(6, lambda step: 0.0)
    other.run(6)
    for mine, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert mine.equal(theirs)
    assert not next(branch.model.parameters()).equal(next(one.model.parameters()))


def test_the_help_of_the_example(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["language_model.py", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(LANGUAGE_MODEL), run_name="__main__")
    assert end.value.code == 0 and "--tiny" in capsys.readouterr().out


def test_the_table_of_shapes_holds():
    rows = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| `")]
    rows = [row for row in rows if len(row) == 4]
    assert len(rows) == 6
    for name, _, halved, lost in rows[:5]:
        shape = NamedDecay.parse(f"{name.split('`')[1]}:0.5").shape
        assert shape.cumulative(float(halved)) == pytest.approx(0.5, abs=0.01)
        above, below = map(int, lost.split("/"))
        assert shape.mean_age == pytest.approx(above / below)
    k = 3.0
    shape = NamedDecay.parse("power:3:0.5").shape
    assert shape.cumulative(1 - 2 ** (-1 / k)) == pytest.approx(0.5)
    assert shape.mean_age == pytest.approx(k / (k + 1))


def test_figures_in_the_text_hold():
    lengths = [Length.of_sigma_rel(s) for s in (0.07, 0.13)]
    low, high = (round(100 * one.cooldown("linear")) for one in lengths)
    assert f"the last {low} to {high} % by width" in PAGE
    low, high = (round(100 * one.median_age) for one in lengths)
    assert re.search(rf"rate over\s+the last {low} to {high} % of the run", PAGE)
    assert Length.of_cooldown("linear:1").sigma_rel * np.sqrt(12) == pytest.approx(1)
