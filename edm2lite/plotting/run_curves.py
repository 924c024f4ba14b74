"""The curves of a training run, read from its ``stats.jsonl``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edm2lite.jsonlines import read_lines
from edm2lite.plotting.figure import new_figure, plain, save_figure
from edm2lite.units import format_amount

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator

logger = logging.getLogger(__name__)

Line = dict[str, Any]

MOMENTS = 5  # number of moments of the run for which a curve over the noise level is drawn


def read_stats(run_dir: Path) -> list[Line]:
    """The statistics that a run has logged, one dictionary per line, in the order of images seen.

    Lines that were cut short are left out, and logged.

    Raises:
        FileNotFoundError: If there is no ``stats.jsonl`` in ``run_dir``.
        ValueError: If the run has not logged any.

    Example:
        >>> import tempfile
        >>> run = Path(tempfile.mkdtemp())
        >>> _ = (run / "stats.jsonl").write_text('{"nimg": 1024, "loss": 0.7}\\n')
        >>> read_stats(run)
        [{'nimg': 1024, 'loss': 0.7}]
    """
    path = Path(run_dir) / "stats.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; give the folder of a run")
    lines, notices = read_lines(path)
    for notice in notices:
        logger.warning("%s", notice)
    lines = [line for line in lines if "nimg" in line]
    if not lines:
        raise ValueError(f"{path} has no line yet; one is written every status_nimg images")
    return lines


def plot_run(path: Path, lines: Sequence[Line], title: str) -> None:
    """Draw the loss, its split over noise levels, the learning rate, the gradient norm and speed.

    A run with validation gets two more panels: the loss on held-out images over time, and by noise
    level at the end, of the raw weights and of every average.

    Args:
        path: Name of the PNG file.
        lines: Statistics of the run, from :func:`read_stats`.
        title: Title of the figure.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "curves.png"
        >>> plot_run(path, [{"nimg": n, "loss": 1e3 / n} for n in (1000, 2000)], "a short run")
        >>> path.is_file()
        True
    """
    validated = [line for line in lines if "validation" in line]
    columns = 4 if validated else 3
    figure = new_figure((13 * columns / 3, 7), dpi=110)
    axes = figure.subplots(2, columns)
    figure.suptitle(plain(title))
    _over_time(axes[0, 0], lines, "loss", "loss per element", log=False)
    _by_level(axes[0, 1], lines)
    _uncertainty(axes[0, 2], lines)
    _over_time(axes[1, 0], lines, "lr", "learning rate", log=False)
    _over_time(axes[1, 1], lines, "grad_norm", "gradient norm", log=True)
    _over_time(axes[1, 2], lines, "img_per_sec", "images per second", log=False)
    axes[1, 2].set_ylim(bottom=0)
    if validated:
        _validation(axes[0, 3], validated)
        _validation_by_level(axes[1, 3], validated[-1])
    figure.tight_layout()
    save_figure(path, figure, crop=False)


def _over_time(axes: Axes, lines: Sequence[Line], key: str, label: str, *, log: bool) -> None:
    found = [(line["nimg"], line[key]) for line in lines if line.get(key) is not None]
    marker = "o" if len(found) < 2 else ""
    axes.plot([n for n, _ in found], [value for _, value in found], marker=marker, lw=1.2)
    if log and found:
        axes.set_yscale("log")
    _label(axes, "images seen", label)
    bad = [line["nimg"] for line in lines if line.get("last_bad_nimg") is not None]
    if key == "grad_norm" and bad:
        axes.axvline(bad[0], color="tab:red", ls="--", lw=0.8, label="first not finite")
        axes.legend(frameon=False, fontsize=8)


def _by_level(axes: Axes, lines: Sequence[Line]) -> None:
    chosen = _spread([line for line in lines if "loss_at" in line])
    for share, line in zip(np.linspace(0.25, 1, len(chosen)), chosen, strict=True):
        x, y = _points(line, "loss_at")
        axes.plot(
            x, y, "o-", ms=3, lw=1, color="tab:blue", alpha=share, label=format_amount(line["nimg"])
        )
    axes.set_yscale("log")
    _label(axes, "ln sigma", "weighted squared error lambda L")
    if chosen:
        axes.legend(title="images seen", frameon=False, fontsize=7, title_fontsize=7)


def _uncertainty(axes: Axes, lines: Sequence[Line]) -> None:
    found = [line for line in lines if "u_at" in line]
    if found:
        axes.plot(*_points(found[-1], "u_at"), "o-", ms=3, lw=1, label="learned u(sigma)")
        x, error = _points(found[-1], "loss_at")
        axes.plot(x, np.log(error), "s--", ms=3, lw=1, label="ln(lambda L), its goal")
        axes.legend(
            title=f"at {format_amount(found[-1]['nimg'])} images", frameon=False, fontsize=8
        )
    _label(axes, "ln sigma", "uncertainty")


def _validation(axes: Axes, lines: Sequence[Line]) -> None:
    marker = "o" if len(lines) < 2 else ""
    for name in lines[-1]["validation"]:
        found = [(s["nimg"], s["validation"][name]) for s in lines if name in s["validation"]]
        axes.plot([n for n, _ in found], [v for _, v in found], marker=marker, lw=1.2, label=name)
    axes.set_yscale("log")
    _label(axes, "images seen", "validation loss, mean over levels")
    axes.legend(frameon=False, fontsize=8)


def _validation_by_level(axes: Axes, line: Line) -> None:
    for name, by_level in line["validation_at"].items():
        levels = [float(level.removeprefix("sigma ")) for level in by_level]
        axes.plot(levels, list(by_level.values()), "o-", ms=3, lw=1, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _label(axes, "sigma", "validation loss")
    title = f"at {format_amount(line['nimg'])} images"
    axes.legend(title=title, frameon=False, fontsize=8)


def _points(line: Line, key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Noise levels and values of a list over noise levels, without those that are missing."""
    pairs = [(x, y) for x, y in zip(line["ln_sigma"], line[key], strict=True) if y is not None]
    x, y = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return x, y


def _spread(lines: Sequence[Line]) -> list[Line]:
    """At most ``MOMENTS`` lines at equal distances, the last line among them."""
    if len(lines) <= MOMENTS:
        return list(lines)
    return [lines[int(i)] for i in np.linspace(0, len(lines) - 1, MOMENTS).round()]


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    if x == "images seen":
        axes.xaxis.set_major_formatter(lambda value, _: format_amount(value))
        axes.xaxis.set_major_locator(_locator())


def _locator() -> MaxNLocator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=5, integer=True)
