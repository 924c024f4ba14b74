"""The command, the picture, and what docs/units.md shows and says."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from edm2lite.ema import Length
from edm2lite.ema.lengths import MEASURES
from edm2lite.tools.edm2lite import main as edm2lite

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "units.md").read_text(encoding="utf-8")


def run(*arguments):
    return CliRunner().invoke(edm2lite, ["ema-units", *map(str, arguments)])


def rows(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return [re.split(r"  +", line.strip()) for line in result.output.splitlines()]


def fail(*arguments, code):
    result = run(*arguments)
    assert result.exit_code == code
    return result.output.strip().splitlines()[-1]


def test_units_convert_into_each_other_through_the_command():
    (first,) = json.loads(run("--sigma-rel", 0.13, "--at", "64Mi", "--batch", 256, "--json").output)
    for option, key in [
        ("--gamma", "gamma"),
        ("--half-life", "half_life_nimg"),
        ("--decay", "decay"),
        ("--window", "window_nimg"),
    ]:
        result = run(option, first[key], "--at", "64Mi", "--batch", 256, "--json")
        (other,) = json.loads(result.output)
        assert other.keys() == first.keys()
        for name, value in first.items():
            # a decay near 1 has lost four digits
            assert other[name] == (value if name == "by" else pytest.approx(value, rel=1e-11))
    assert first["last_beta"] == pytest.approx((1 - 256 / 2**26) ** (first["gamma"] + 1))
    assert first["nimg"] == 2**26 and first["half_life_nimg"] == first["half_life"] * 2**26


def test_all_options_at_once_give_a_row_each_in_their_order():
    table = rows(
        "--sigma-rel", "0.05,0.1", "--gamma", "3", "--half-life", "500k,1M", "--decay", "0.9999",
        "--window", "4Mi", "--at", "64Mi", "--batch", 256, "--by", "median",
    )  # fmt: skip
    assert table[0][-3:] == ["decay", "last beta", "initial"] and len(table) == 8
    assert [row[0] for row in table[1:3]] == ["0.0500", "0.1000"]
    assert table[3][1] == "3.000"
    assert [row[2] for row in table[4:7]] == ["500k", "1M", "1.774M"]
    assert table[6][6] == "0.9999000" and table[7][3] == "4.194M"


def test_profiles_are_drawn(tmp_path):
    picture = tmp_path / "p.png"
    result = run("--sigma-rel", "0.05,0.2", "--gamma", 0, "--at", "8Mi", "--plot", picture)
    assert result.exit_code == 0, result.output
    assert str(picture) in result.stderr and str(picture) not in result.stdout
    with Image.open(picture) as image:
        assert image.size[0] > 800 and len(np.unique(np.asarray(image).reshape(-1, 4), axis=0)) > 50


def test_mistakes_are_explained():
    assert "give a length" in fail(code=2)
    assert "--at and --batch" in fail("--decay", 0.9999, "--at", 100, code=2)
    assert "give --at" in fail("--half-life", 5, code=2)
    assert "--batch needs --at" in fail("--gamma", 5, "--batch", 5, code=2)
    assert "at most --at" in fail("--gamma", 5, "--batch", 50, "--at", 10, code=1)
    assert "between 0 and 1" in fail("--decay", 2, "--batch", 5, "--at", 10, code=1)
    assert "longer (by width)" in fail("--decay", 0.9999, "--at", "64Mi", "--batch", 2048, code=1)
    assert "positive number" in fail("--window", "x", "--at", 1, code=2)


def test_the_commands_of_the_units_page_run_and_its_tables_are_theirs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (commands,) = re.findall(r"```sh\n(.*?)```", TEXT, re.S)
    for line in commands.splitlines():
        result = CliRunner().invoke(edm2lite, shlex.split(line)[1:])
        assert result.exit_code == 0, (line, result.output)
    cells = [line.strip("| ").split(" | ") for line in TEXT.splitlines() if line.startswith("| ")]
    start = next(i for i, c in enumerate(cells) if c[:3] == ["sigma_rel", "gamma", "half-life"])
    table = cells[start : start + 11]
    assert table == rows("--sigma-rel", ",".join(row[0] for row in table[1:]))
    checked = 0
    for at, batch, half_life, sigma_rel, *gamma in cells[start + 12 :]:
        count, _ = at.split()
        size = 1 if batch == "any" else batch
        arguments = ("--decay", 0.9999, "--at", count, "--batch", size)
        if sigma_rel.startswith("refused: 21 %"):
            assert "0.2115 of it" in fail(*arguments, code=1)
        else:
            ((_, row),) = [rows(*arguments)]
            shown = half_life.replace("6931 updates", "6.931k")
            assert row[:3] == [sigma_rel, *gamma, shown]
        checked += 1
    assert checked == 5


def test_figures_in_the_text_of_the_units_page_hold(capsys):
    lengths = [Length.of_sigma_rel(0.10, by) for by in MEASURES]
    half_lives = [f"{100 * one.half_life:.1f}" for one in lengths]
    assert "the half-life is {}, {} or {} %".format(*half_lives) in TEXT
    windows = [f"{100 * one.window:.1f}" for one in lengths]
    assert "({} against {} and {} %)".format(*windows) in TEXT
    t = (np.arange(10**6) + 0.5) / 10**6
    power = (lengths[0].gamma + 1) * t ** lengths[0].gamma
    ema = [
        np.exp((t - 1) * np.log(2) / one.half_life) * np.log(2) / one.half_life for one in lengths
    ]
    common = [round(100 * np.minimum(power, e).mean()) for e in ema]
    assert "have {}, {} or {} %".format(*common) in " ".join(TEXT.split())
    window = (t > 1 - lengths[1].window) / lengths[1].window
    assert round(100 * np.minimum(power, window).mean()) == 74 and "(74 %)" in TEXT
    assert Length.of_half_life(50e6, 2147.5e6).sigma_rel == pytest.approx(0.034, abs=5e-4)
    assert 1 / Length(6.94).mean_age == pytest.approx(9, abs=0.1)
    assert 1 / Length(100).mean_age == pytest.approx(100, abs=3)
    code = re.search(r"```python\n(.*?)```", TEXT, re.S)[1]
    exec(compile(code, "docs/units.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "sigma_rel 0.0381, gamma 23.20" and len(lines) == 3
