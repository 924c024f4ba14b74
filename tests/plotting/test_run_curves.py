"""The curves of a run, in the picture that the command writes."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from edm2lite.plotting.run_curves import plot_run, read_stats
from edm2lite.tools.plot import main as plot

BLUE, ORANGE, GREEN = (31, 119, 180), (255, 127, 14), (44, 160, 44)  # the first colors of tab10


def panels(path, columns, color):
    """Whether a color is in each of the panels, row by row."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    near = np.abs(pixels - color).sum(2) < 90
    rows = np.array_split(near, 2)
    return [bool(part.any()) for row in rows for part in np.array_split(row, columns, axis=1)]


def test_curves_are_drawn_from_the_lines_of_a_run(run_dir, tmp_path):
    done = CliRunner().invoke(plot, [str(run_dir), "--out", str(tmp_path / "a.png")])
    assert done.exit_code == 0, done.output
    assert done.output.strip() == str(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (1430, 770)
    assert all(panels(tmp_path / "a.png", 3, BLUE))  # a line in each of the six
    plot_run(tmp_path / "b.png", read_stats(run_dir), str(run_dir) + ", 1280 images")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_validation_gets_panels_with_a_curve_for_each_average(run_dir, tmp_path):
    lines = read_stats(run_dir)
    for i, line in enumerate(lines[1:]):
        names = ["raw", "sigma_rel=0.05", "sigma_rel=0.1"][: 2 + (i > 0)]
        line["validation"] = {name: 0.5 + k + i for k, name in enumerate(names)}
        levels = {"sigma 0.05": 0.9, "sigma 1": 0.4}
        line["validation_at"] = {name: {s: v + k for s, v in levels.items()}
                                 for k, name in enumerate(names)}  # fmt: skip
    plot_run(tmp_path / "a.png", lines, "with validation")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size[1] == 770 and picture.size[0] == pytest.approx(1430 * 4 / 3, abs=1)
    for color in (BLUE, ORANGE, GREEN):  # one for the raw weights, and one for each average
        assert panels(tmp_path / "a.png", 4, color)[3::4] == [True, True]
    assert not any(panels(tmp_path / "a.png", 4, GREEN)[i] for i in (0, 1, 2, 4, 5, 6))


def test_lines_between_two_ticks_do_not_disturb(run_dir, tmp_path):
    """A hook's report has a line of its own, in which nothing else is."""
    lines = read_stats(run_dir)
    mixed = [lines[0], {"nimg": 400, "weight_norm": 3.0}, *lines[1:], {"nimg": 1300, "a": {"b": 1}}]
    for name, content in (("a", lines), ("b", mixed)):
        text = "".join(json.dumps(line) + "\n" for line in content)
        (tmp_path / name).mkdir()
        (tmp_path / name / "stats.jsonl").write_text(text)
        plot_run(tmp_path / f"{name}.png", read_stats(tmp_path / name), "a run")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_run_without_lines_is_explained(tmp_path):
    for text, message in (
        (None, "there is no"), ("", "has no line yet"), ('{"a": 1}\n{"b"', "has no line yet"),
    ):  # fmt: skip
        if text is not None:
            (tmp_path / "stats.jsonl").write_text(text)
        done = CliRunner().invoke(plot, [str(tmp_path)])
        assert done.exit_code == 1 and message in done.output and "Traceback" not in done.output
