"""What ``sweep_ema`` leaves behind and prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ._cli import table

if TYPE_CHECKING:
    from edm2lite.metrics.interval import Verdict
    from edm2lite.sweep.cells import Point
    from edm2lite.sweep.measure import Measurer

    from ._sweep import Asked


def write(asked: Asked, measurer: Measurer, points: list[Point], notes: Sequence[str]) -> None:
    """Write sweep.csv, .png, .md and .html; print the table and the verdict."""
    from edm2lite.plotting import sweep as plots
    from edm2lite.sweep import best, write_csv
    from edm2lite.sweep.cells import varying
    from edm2lite.sweep.page import write_page
    from edm2lite.sweep.table import write_report

    metric, axes, lowest = asked.metric, varying(points), best(points)
    final = [p for p in points if p.num == lowest.num and p.sigma_rel is not None]
    title = _title(asked, final)
    write_csv(asked.out / "sweep.csv", points)
    picture = asked.out / "sweep.png"
    verdict, words = _verdict(measurer, final, metric)
    if len(axes) == 1:
        plots.plot_curve(picture, points, verdict, metric, title)
    elif "group" in axes:
        plots.plot_groups(picture, points, metric, title)
    else:
        plots.plot_heat(picture, points, metric, title)
    text = " ".join([words, *notes])
    write_report(asked.out / "sweep.md", points, metric, text, title)
    images = {
        p.cell: kept
        for p in final
        if (kept := measurer.ledger.images(measurer.setting, p.cell, p.num)) is not None
    }
    page = asked.out / "sweep.html"
    write_page(page, points, images, metric=metric, verdict=text, protocol=title)
    _print(points, axes, lowest, metric)
    click.echo(f"\n{text}\n{page}")


def _verdict(measurer: Measurer, final: Sequence[Point], metric: str) -> tuple[Verdict, str]:
    """On the averaged points of most images, and in words."""
    from edm2lite.metrics.interval import alike, judge
    from edm2lite.sweep.cells import varying
    from edm2lite.sweep.table import cell_words, curve_words

    final = sorted(final, key=lambda p: p.sigma_rel or 0)
    values, covariance = measurer.joint([p.cell for p in final], final[0].num)
    verdict = judge([p.sigma_rel or 0 for p in final], values, covariance)
    if len(varying(final)) == 1:
        return verdict, curve_words(final, verdict, metric)
    return verdict, cell_words(final, alike(values, covariance), metric)


def _title(asked: Asked, final: Sequence[Point]) -> str:
    ends = sorted({p.nimg for p in final})
    trained = f"{ends[0]:,} training images" if len(ends) == 1 else "several training times"
    if asked.metric == "loss":
        return f"{asked.num} images of {asked.data}, {trained}"
    guided = f", guided by {asked.guide}" if asked.guide else ""
    reference = asked.ref.name if asked.ref else ""  # where it lies is no part of the result
    return f"{asked.num} images, {asked.steps} steps, {reference}{guided}, {trained}"


def _print(points: Sequence[Point], axes: Sequence[str], lowest: Point, metric: str) -> None:
    from edm2lite.sweep.table import METRIC, named

    kinds = dict.fromkeys(axes, "") | {"gamma": "", METRIC[metric]: ".4f", "from": ".4f"}
    kinds |= {"to": ".4f", "images": "d", "": ""}
    rows = [
        [
            *(named(axis, getattr(p, axis)) for axis in axes),
            "" if p.gamma is None else f"{p.gamma:.3f}",
            p.value, p.low, p.high, p.num, "best" if p is lowest else "",
        ]
        for p in points
    ]  # fmt: skip
    click.echo(table(kinds, rows))
