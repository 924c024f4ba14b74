"""What pictures show, read from the figure before it is saved: areas, extremes, and the numbers."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.integrate import trapezoid

from edm2lite.ema.lengths import Length
from edm2lite.metrics.interval import Verdict
from edm2lite.network.magnitudes import Magnitude
from edm2lite.plotting import images, lengths, magnitudes, sweep
from edm2lite.plotting.figure import new_figure, save_figure
from edm2lite.sweep.cells import Point

pytest.importorskip("matplotlib", reason="pip install 'edm2lite[test]'")


@pytest.fixture
def drawn(monkeypatch):
    """The figures that functions save, instead of files."""
    figures = []
    for module in (images, lengths, magnitudes, sweep):
        monkeypatch.setattr(module, "save_figure", lambda path, figure: figures.append(figure))
    return figures


def lines(axes):
    """Label -> (x, y) of each line; of lines without a label, the last one counts."""
    return {line.get_label(): line.get_data() for line in axes.get_lines()}


def point(sigma_rel, value, **others):
    return Point(
        sigma_rel=sigma_rel, nimg=1000, gamma=3.0, value=value, low=value - 1, high=value + 1,
        **{"num": 100, **others},
    )  # fmt: skip


def test_areas_under_profiles_are_one_and_dots_halve_them(drawn):
    length = Length.of_sigma_rel(0.1)
    lengths.plot_lengths("unused", [length], nimg=1e6)
    axes = drawn[0].axes[0]
    power, decay, window, dot, *_ = (line.get_data() for line in axes.get_lines())
    assert trapezoid(power[1], power[0]) == pytest.approx(1, abs=1e-4)
    assert trapezoid(decay[1], decay[0]) == pytest.approx(1 - length.initial_share, abs=1e-4)
    assert trapezoid(window[1], window[0]) == pytest.approx(1, abs=1e-12)
    t, y = power
    older = trapezoid(y[t <= dot[0][0]], t[t <= dot[0][0]])
    assert older == pytest.approx(0.5, abs=2e-3)  # a step of the curve holds up to 1e-3
    assert "1M images" in axes.get_xlabel()


def test_images_are_where_their_names_say(drawn):
    rng = np.random.default_rng(0)
    gray, short = (rng.integers(0, 256, (n, 1, 4, 4), dtype=np.uint8) for n in (3, 1))
    images.plot_images("unused", [gray, short], ["raw", "10 %"], ["a", "b", "c"])
    cells = np.array(drawn[0].axes).reshape(2, 3)
    for row, shown in ((0, gray), (1, short)):
        for column, axes in enumerate(cells[row]):
            pictures = [picture.get_array() for picture in axes.get_images()]
            assert len(pictures) == (column < len(shown))
            assert all((picture == shown[column][0]).all() for picture in pictures)
    assert [axes.get_title() for axes in cells[0]] == ["a", "b", "c"]
    assert [axes.get_ylabel() for axes in cells[:, 0]] == ["raw", "10 %"]


def test_magnitudes_are_drawn_as_measured(drawn):
    layers = [
        Magnitude("enc.block0.conv", "8x8", 0.5, 0.6, 0.9, weight=0.98),
        Magnitude("enc.block0", "8x8", 1.0, 1.1, 1.6),
        Magnitude("dec.block0", "8x8", 1.0, 0.9, 1.2),
    ]
    magnitudes.plot_magnitudes("unused", layers, [])
    shown = lines(drawn[0].axes[0])
    np.testing.assert_allclose(shown["blocks"], ([1, 2], [1.1, 0.9]))
    np.testing.assert_allclose(shown["their largest feature"], ([1, 2], [1.6, 1.2]))
    np.testing.assert_allclose(shown["convolutions / gain"], ([0], [0.6 / 0.5]))
    np.testing.assert_allclose(shown["stored weights"], ([0], [0.98]))


def test_the_best_length_of_a_curve_is_marked_and_bad_raw_weights_are_left_out(drawn):
    averages = [point(0.05, 7.0), point(0.1, 5.0), point(0.2, 9.0), point(0.1, 1.0, num=10)]
    verdict = Verdict(1, 0.1, 0.08, 0.12, open_low=False, open_high=False, alike=(1,))
    for raw, is_shown in ((30.0, True), (40.0, False)):
        sweep.plot_curve("unused", [*averages, point(None, raw)], verdict, "fid", "title")
        shown = lines(drawn.pop().axes[0])
        (best,) = (data for label, data in shown.items() if label.startswith("best"))
        np.testing.assert_allclose(best, ([10], [5]))  # of those of most images
        np.testing.assert_allclose(shown["100 images"], ([5, 10, 20], [7, 5, 9]))
        assert any(label.startswith("raw") for label in shown) == is_shown


def test_raw_weights_that_are_best_are_marked_on_the_curve(drawn):
    averages = [point(0.05, 7.0), point(0.1, 5.0), point(0.2, 9.0)]
    verdict = Verdict(0, 0.1, 0.08, 0.12, open_low=False, open_high=False, alike=(0,))
    sweep.plot_curve("unused", [point(None, 4.0), *averages], verdict, "fd", "title")
    axes = drawn[0].axes[0]
    labels = [line.get_label() for line in axes.get_lines()]
    assert "best: raw last weights, FD 4" in labels and "best average: 10 %, FD 5" in labels


def test_a_heat_map_holds_every_value_and_frames_the_least(drawn):
    grid = {(s, g): 10 * s + g + (s - 0.1) ** 2 for s in (0.05, 0.1, 0.2) for g in (1.0, 2.0)}
    points = [point(s, value, guidance=g) for (s, g), value in grid.items()]
    sweep.plot_heat("unused", points, "fid", "title")
    axes = drawn[0].axes[0]
    texts = {t.get_position(): t.get_text() for t in axes.texts}
    rows, columns = (1.0, 2.0), (0.05, 0.1, 0.2)
    assert texts == {
        (x, y): f"{grid[s, g]:.3g}" for x, s in enumerate(columns) for y, g in enumerate(rows)
    }
    (frame,) = axes.patches
    assert (frame.get_x(), frame.get_y()) == (-0.5, -0.5)  # 0.05 and 1.0


def test_the_same_figure_gives_the_same_file(tmp_path):
    for name in ("a.png", "b.png"):
        figure = new_figure((2, 1))
        figure.add_subplot().plot([0, 1], [1, 0])
        save_figure(tmp_path / name, figure)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert b"Matplotlib" not in (tmp_path / "a.png").read_bytes()


def test_without_matplotlib_the_extra_is_named():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from edm2lite.plotting.figure import new_figure\n"
        "try:\n    new_figure()\nexcept ImportError as error:\n    print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'edm2lite[metrics]'" in ran.stdout
