"""The words and the table of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edm2lite.atomic import replacing
from edm2lite.metrics.interval import Verdict
from edm2lite.sweep.cells import AXES, Point, best, varying
from edm2lite.units import format_percent

METRIC = {"fd": "FD", "loss": "loss"}
MEANING = (
    "Intervals are 95 %: where the value would be expected with other seeds, as many images and the"
    " same reference."
)


def named(axis: str, value: Any) -> str:
    """A value of an axis for people: 0.13 of sigma_rel is 13 %."""
    if axis.endswith("sigma_rel"):
        return "raw" if value is None else format_percent(value)
    return f"{value:,}" if axis == "nimg" else f"{value:g}" if axis == "guidance" else str(value)


def curve_words(points: Sequence[Point], verdict: Verdict, metric: str) -> str:
    """The verdict on a curve over ascending lengths, in three sentences."""
    lowest = points[verdict.best]
    name = METRIC[metric]
    text = (
        f"Best EMA length {named('sigma_rel', lowest.sigma_rel)}: {name} {lowest.value:.4g}"
        f" ({lowest.low:.4g} to {lowest.high:.4g})."
    )
    if len(points) > 2:
        low = named("sigma_rel", verdict.low) + (" or less" if verdict.open_low else "")
        high = named("sigma_rel", verdict.high) + (" or more" if verdict.open_high else "")
        text += f" The minimum lies at {named('sigma_rel', verdict.place)} ({low} to {high})."
    others = [points[i].sigma_rel for i in verdict.alike if i != verdict.best]
    if others:
        text += (
            f" Cannot be told apart from it: {', '.join(named('sigma_rel', s) for s in others)}."
        )
    elif len(points) > 1:
        text += " Every other length is worse."
    return text


def cell_words(points: Sequence[Point], equal: Sequence[int], metric: str) -> str:
    """The verdict on cells along several axes."""
    lowest, axes = best(points), varying(points)

    def where(point: Point) -> str:
        return ", ".join(f"{AXES[a]} {named(a, getattr(point, a))}" for a in axes)

    text = (
        f"Best: {where(lowest)}: {METRIC[metric]} {lowest.value:.4g} ({lowest.low:.4g} to"
        f" {lowest.high:.4g})."
    )
    others = [where(points[i]) for i in equal if points[i] is not lowest]
    if others:
        listed = "; ".join(others[:5]) + ("; ..." if len(others) > 5 else "")
        text += f" Cannot be told apart from it, {len(others)} of {len(points) - 1}: {listed}."
    return text


def markdown_table(points: Sequence[Point], metric: str) -> str:
    """One line per point, the best one marked."""
    axes, lowest = varying(points), best(points)
    several = len({point.num for point in points}) > 1
    head = [AXES[a] for a in axes] + [METRIC[metric], "95 % interval", "predicted error"]
    lines = [head + (["images"] if several else [])]
    lines.append(["---"] * len(lines[0]))
    for point in points:
        cells = [named(a, getattr(point, a)) for a in axes]
        mark = " **best**" if point is lowest else ""
        error = "" if point.sigma_rel is None else f"{point.predicted_error:.1e}"
        cells += [f"{point.value:.4g}{mark}", f"{point.low:.4g} to {point.high:.4g}", error]
        lines.append(cells + ([str(point.num)] if several else []))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def write_report(path: Path, points: Sequence[Point], metric: str, words: str, title: str) -> None:
    """Write ``sweep.md``."""
    page = (
        f"# EMA sweep\n\n{title}.\n\n{words} {MEANING}\n\n![sweep](sweep.png)\n\n"
        f"{markdown_table(points, metric)}\n"
    )
    with replacing(path) as file:
        file.write(page)
