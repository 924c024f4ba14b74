"""The words and the table of a sweep."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edm2lite.atomic import replacing
from edm2lite.messages import one_line
from edm2lite.metrics.interval import Verdict
from edm2lite.metrics.registry import MetricName, find_metric
from edm2lite.sweep.cells import AXES, Point, best, best_average, varying
from edm2lite.units import format_percent

MEANING = (
    "Intervals are 95 %: where the value would be expected with other seeds, as many images and the"
    " same reference."
)
NO_INTERVAL = "The metric has no intervals, so that lengths of similar values cannot be told apart."


def named(axis: str, value: Any) -> str:
    """A value of an axis for people.

    Example:
        >>> named("sigma_rel", 0.13), named("nimg", 64000)
        ('13 %', '64,000')
    """
    if axis == "decay":
        return value or "raw"
    if axis.endswith("sigma_rel"):
        return "raw" if value is None else format_percent(value)
    return f"{value:,}" if axis == "nimg" else f"{value:g}" if axis == "guidance" else str(value)


def measured(point: Point, metric: MetricName) -> str:
    """A value with its interval for people.

    Example:
        >>> measured(Point(0.1, 1024, value=2.5, low=2.25, high=2.75), "fd")
        'FD 2.5 (2.25 to 2.75)'
    """
    limits = "" if point.low is None else f" ({point.low:.4g} to {point.high:.4g})"
    return f"{find_metric(metric).label} {point.value:.4g}{limits}"


def curve_words(points: Sequence[Point], verdict: Verdict, metric: MetricName) -> str:
    """The verdict on a curve over ascending lengths, in three sentences.

    Args:
        points: The curve, after the raw weights if they are compared with it.
        verdict: What :func:`edm2lite.metrics.interval.judge` says of it.
        metric: Name of the metric.
    """
    top, kind = points[verdict.best], find_metric(metric)
    average = best_average(points, kind.lower_is_better)
    text = f"Best EMA length {named('sigma_rel', average.sigma_rel)}: {measured(average, metric)}."
    if top is not average:
        text = f"The raw weights scored best: {measured(top, metric)}. {text}"
    if sum(point.sigma_rel is not None for point in points) > 2:
        what = "minimum" if kind.lower_is_better else "maximum"
        text += f" The {what} lies at {named('sigma_rel', verdict.place)}{_limits(verdict)}."
    if verdict.low is None:
        return f"{text} {NO_INTERVAL}" if len(points) > 1 else text
    others = [points[i].sigma_rel for i in verdict.alike if i != verdict.best]
    if others:
        listed = [named("sigma_rel", s) for s in others if s is not None]
        listed += ["the raw weights"] if None in others else []
        it = "it" if top is average else "the raw weights"
        text += f" Cannot be told apart from {it}: {', '.join(listed)}."
    elif len(points) > 1:
        text += " Every other length is worse." if top is average else " Every average is worse."
    return text


def _limits(verdict: Verdict) -> str:
    if verdict.low is None:
        return ""
    low = named("sigma_rel", verdict.low) + (" or less" if verdict.open_low else "")
    high = named("sigma_rel", verdict.high) + (" or more" if verdict.open_high else "")
    return f" ({low} to {high})"


def cell_words(points: Sequence[Point], equal: Sequence[int] | None, metric: MetricName) -> str:
    """The verdict on cells along several axes.

    Args:
        points: The cells.
        equal: Indices of those that cannot be told apart from the best one, None if not known.
        metric: Name of the metric.
    """
    top, axes = best(points, find_metric(metric).lower_is_better), varying(points)

    def where(point: Point) -> str:
        if point.is_raw:
            return "the raw weights"
        return ", ".join(f"{AXES[a]} {named(a, getattr(point, a))}" for a in axes)

    text = f"Best: {where(top)}: {measured(top, metric)}."
    if equal is None:
        return f"{text} {NO_INTERVAL}"
    others = [where(points[i]) for i in equal if points[i] is not top]
    if others:
        listed = "; ".join(others[:5]) + ("; ..." if len(others) > 5 else "")
        text += f" Cannot be told apart from it, {len(others)} of {len(points) - 1}: {listed}."
    return text


def markdown_table(points: Sequence[Point], metric: MetricName) -> str:
    """One line per point, the best one marked.

    Args:
        points: The points.
        metric: Name of the metric.

    Example:
        >>> print(markdown_table([Point(0.1, 1024, value=2.5, low=2.25, high=2.75)], "fd"))
        | EMA length | FD | 95 % interval | predicted error |
        | --- | --- | --- | --- |
        | 10 % | 2.5 **best** | 2.25 to 2.75 | 0.0e+00 |
    """
    kind = find_metric(metric)
    axes, top = varying(points), best(points, kind.lower_is_better)
    several = len({point.num for point in points}) > 1
    head = [AXES[a] for a in axes] + [kind.label, "95 % interval", "predicted error"]
    lines = [head + (["images"] if several else [])]
    lines.append(["---"] * len(lines[0]))
    for point in points:
        cells = [named(a, getattr(point, a)) for a in axes]
        mark = " **best**" if point is top else ""
        error = "" if point.is_raw else f"{point.predicted_error:.1e}"
        limits = "none" if point.low is None else f"{point.low:.4g} to {point.high:.4g}"
        cells += [f"{point.value:.4g}{mark}", limits, error]
        lines.append(cells + ([str(point.num)] if several else []))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def write_report(
    path: Path, points: Sequence[Point], metric: MetricName, words: str, title: str, picture: str
) -> None:
    """Write ``sweep.md``.

    Args:
        path: The file.
        points: The table.
        metric: Name of the metric.
        words: The verdict.
        title: What was measured, and how.
        picture: Name of the picture that it shows, or "".
    """
    shown = f"![sweep]({picture})\n\n" if picture else ""
    title = html.escape(one_line(title), quote=False)  # it has names of files
    page = (
        f"# EMA sweep\n\n{title}.\n\n{words} {MEANING}\n\n{shown}{markdown_table(points, metric)}\n"
    )
    with replacing(path) as file:
        file.write(page)
