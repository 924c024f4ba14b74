"""The results of a sweep: curves over EMA lengths or decays, a heat map, a curve per group."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edm2lite.ema.decays import NamedDecay
from edm2lite.metrics.interval import Verdict
from edm2lite.metrics.registry import MetricName, find_metric
from edm2lite.plotting.figure import new_figure, plain, save_figure
from edm2lite.sweep.cells import AXES, Point, best, best_average, varying
from edm2lite.sweep.table import named

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LENGTH_LABEL = "EMA length sigma_rel, % of training time"


def plot_curve(
    path: Path, points: Sequence[Point], verdict: Verdict, metric: MetricName, title: str
) -> None:
    """Draw the metric over the EMA length, with its interval and the best length marked.

    Raw weights are a dashed line, unless they are four times worse than every average; red if they
    are the best.

    Args:
        path: Name of the PNG file.
        points: All measured points; lengths measured on fewer images than the others are gray.
        verdict: Conclusion from the points measured on most images.
        metric: Name of the metric, or its class.
        title: Title of the figure.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> points = [
        ...     Point(sigma_rel=s, nimg=64000, value=value, low=value - 1, high=value + 1, num=500)
        ...     for s, value in ((0.05, 7.1), (0.1, 5.2), (0.2, 9.8))
        ... ]
        >>> verdict = Verdict(1, 0.09, 0.07, 0.12, open_low=False, open_high=False, alike=(1,))
        >>> path = Path(tempfile.mkdtemp()) / "sweep.png"
        >>> plot_curve(path, points, verdict, "fid", "a sweep of three lengths")
        >>> path.is_file()
        True
    """
    figure = new_figure()
    axes = figure.add_subplot()
    kind = find_metric(metric)
    lowest, top = best_average(points, kind.lower_is_better), best(points, kind.lower_is_better)
    averaged = sorted((p for p in points if p.sigma_rel is not None), key=_length)
    for num in sorted({p.num for p in averaged}):
        curve = [p for p in averaged if p.num == num]
        final = num == lowest.num
        color = "tab:blue" if final else "tab:gray"
        _band(axes, curve, color, f"{num} images", marker="o" if final else ".")
    if verdict.low is not None and verdict.high is not None:
        axes.axvspan(100 * verdict.low, 100 * verdict.high, color="tab:red", alpha=0.08, lw=0)
    what = "best" if top is lowest else "best average"
    name = f"{what}: {named('sigma_rel', lowest.sigma_rel)}, {kind.label} {lowest.value:.4g}"
    axes.plot([100 * _length(lowest)], [lowest.value], "*", ms=16, color="tab:red", label=name)
    for raw in (p for p in points if p.is_raw):
        if raw is top or raw.value < 4 * max(p.value for p in averaged):
            text = f"raw last weights, {kind.label} {raw.value:.4g}"
            color, text = ("tab:red", f"best: {text}") if raw is top else ("tab:gray", text)
            axes.axhline(raw.value, color=color, ls="--", label=text)
    _along_lengths(axes, [_length(p) for p in averaged])
    axes.set_ylabel(kind.axis_label)
    axes.set_title(plain(title), fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    save_figure(path, figure)


def plot_heat(path: Path, points: Sequence[Point], metric: MetricName, title: str) -> None:
    """Draw the metric as colors and numbers over the EMA length or decay, and a second axis.

    The best cell is framed. Arguments are those of :func:`plot_curve`; the second axis is the
    first one, besides the length, along which the points differ.
    """
    points = [p for p in points if not p.is_raw]
    first, axis, *_ = varying(points)
    lengths = list(dict.fromkeys(getattr(p, first) for p in points))
    lengths = lengths if first == "decay" else sorted(lengths)
    others = sorted({getattr(p, axis) for p in points})
    grid = np.full((len(others), len(lengths)), np.nan)
    for p in points:
        grid[others.index(getattr(p, axis)), lengths.index(getattr(p, first))] = p.value
    kind = find_metric(metric)
    lowest = best(points, kind.lower_is_better)
    is_log = bool(np.nanmin(grid) > 0)  # not of an unbiased distance, which may be negative
    shade = np.log(grid) if is_log else grid
    figure = new_figure((1.6 + 0.75 * len(lengths), 1.4 + 0.55 * len(others)))
    axes = figure.add_subplot()
    colors = "viridis_r" if kind.lower_is_better else "viridis"
    shown = axes.imshow(shade, cmap=colors, origin="lower", aspect="auto")
    middle = np.nanmean(shade)
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            is_bright = (shade[row, column] < middle) == kind.lower_is_better
            color = "black" if is_bright else "white"
            text = f"{value:.3g}"
            axes.text(column, row, text, color=color, ha="center", va="center", fontsize=8)
    from matplotlib.patches import Rectangle

    corner = lengths.index(getattr(lowest, first)) - 0.5, others.index(getattr(lowest, axis)) - 0.5
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, ec="tab:red", lw=2.5))
    if first == "decay":
        axes.set_xticks(range(len(lengths)), lengths, rotation=30, ha="right")
    else:
        axes.set_xticks(range(len(lengths)), [f"{100 * s:.3g}" for s in lengths])
    axes.set_yticks(range(len(others)), [named(axis, value) for value in others])
    axes.set_xlabel("decay" if first == "decay" else _LENGTH_LABEL)
    axes.set_ylabel(AXES[axis])
    axes.set_title(plain("\n".join(textwrap.wrap(title, 12 + 12 * len(lengths)))), fontsize=9)
    ticks = (np.geomspace if is_log else np.linspace)(np.nanmin(grid), np.nanmax(grid), 4)
    bar = figure.colorbar(shown, ticks=np.log(ticks) if is_log else ticks)
    bar.ax.set_yticklabels([f"{tick:.3g}" for tick in ticks])
    bar.set_label(kind.axis_label)
    save_figure(path, figure)


def plot_decays(path: Path, points: Sequence[Point], metric: MetricName, title: str) -> None:
    """Draw the metric over the length of emulated decays, with a curve per shape.

    Arguments are those of :func:`plot_curve`. Bars are intervals; raw weights are a dashed line.

    Example:
        >>> import tempfile
        >>> points = [
        ...     Point(None, 64000, decay=f"linear:{d}", value=5 - d, low=4.5, high=5.5, num=500)
        ...     for d in (0.1, 0.2)
        ... ]
        >>> path = Path(tempfile.mkdtemp()) / "sweep.png"
        >>> plot_decays(path, points, "fid", "a sweep of two decays")
        >>> path.is_file()
        True
    """
    kind = find_metric(metric)
    figure = new_figure()
    axes = figure.add_subplot()
    curves: dict[str, list[tuple[float, Point]]] = {}
    for point in (p for p in points if not p.is_raw):
        decay = NamedDecay.parse(point.decay).at(point.nimg)
        curves.setdefault(str(decay.shape), []).append((100 * decay.width / decay.nimg, point))
    for i, (shape, found) in enumerate(curves.items()):
        found.sort(key=lambda pair: pair[0])
        x, curve = [length for length, _ in found], [point for _, point in found]
        axes.plot(x, [p.value for p in curve], "o-", color=f"C{i}", ms=5, label=shape)
        for length, p in found:
            if p.low is not None and p.high is not None:
                axes.vlines(length, p.low, p.high, color=f"C{i}", lw=3, alpha=0.3)
    top = best(points, kind.lower_is_better)
    for raw in (p for p in points if p.is_raw):
        axes.axhline(raw.value, color="tab:gray", ls="--", label=f"raw, {raw.value:.4g}")
    if not top.is_raw:
        decay = NamedDecay.parse(top.decay).at(top.nimg)
        name = f"best: {top.decay}, {kind.label} {top.value:.4g}"
        x = [100 * decay.width / decay.nimg]
        axes.plot(x, [top.value], "*", ms=16, color="tab:red", label=name)
    axes.set_xlabel("length of the emulated decay, % of training time")
    axes.set_ylabel(kind.axis_label)
    axes.set_title(plain(title), fontsize=9)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    save_figure(path, figure)


def plot_groups(path: Path, points: Sequence[Point], metric: MetricName, title: str) -> None:
    """Draw a curve per group of tensors whose EMA length alone varies.

    Dashed lines are averages in which all tensors have one length. Arguments are those of
    :func:`plot_curve`.
    """
    figure = new_figure()
    axes = figure.add_subplot()
    for group in dict.fromkeys(p.group for p in points if p.group):
        curve = sorted((p for p in points if p.group in (group, "")), key=_length)
        axes.plot(
            [100 * _length(p) for p in curve], [p.value for p in curve], ".-", label=plain(group)
        )
    for base in (p for p in points if not p.group and p.sigma_rel is not None):
        text = f"all at {named('sigma_rel', base.sigma_rel)}"
        axes.axhline(base.value, color="tab:gray", ls="--", label=text)
    _along_lengths(axes, sorted({_length(p) for p in points}))
    axes.set_xlabel("EMA length of the group alone, % of training time")
    axes.set_ylabel(find_metric(metric).axis_label)
    axes.set_title(plain(title), fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    save_figure(path, figure)


def _length(point: Point) -> float:
    assert point.sigma_rel is not None
    return point.sigma_rel


def _band(axes: Axes, curve: Sequence[Point], color: str, label: str, marker: str) -> None:
    lengths = [100 * _length(p) for p in curve]
    axes.plot(lengths, [p.value for p in curve], marker=marker, color=color, label=label, ms=5)
    low = [p.low for p in curve if p.low is not None]
    high = [p.high for p in curve if p.high is not None]
    if len(low) < len(curve):
        return
    axes.fill_between(lengths, low, high, color=color, alpha=0.15, lw=0)
    if len(curve) == 1:  # a band of one point has no width
        axes.vlines(lengths, low, high, color=color, lw=3, alpha=0.4)


def _along_lengths(axes: Axes, lengths: Sequence[float]) -> None:
    """Make the x axis logarithmic, with ticks at those lengths whose labels do not overlap."""
    axes.set_xscale("log")
    wide = np.log(max(lengths) / min(lengths)) / 12
    ticks: list[float] = []
    for length in lengths:
        if not ticks or np.log(length / ticks[-1]) >= wide:
            ticks.append(length)
    axes.set_xticks([100 * s for s in ticks], [f"{100 * s:.3g}" for s in ticks])
    axes.minorticks_off()
    axes.set_xlabel(_LENGTH_LABEL)
    axes.grid(alpha=0.25)
