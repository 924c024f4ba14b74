"""What ``sweep_ema`` leaves behind and prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ._cli import table

if TYPE_CHECKING:
    from edm2lite.sweep import Sweep


def write(sweep: Sweep) -> None:
    """Write sweep.csv, .png, .md and .html; print the table and the verdict."""
    page = sweep.write()
    _draw(sweep)
    click.echo(_table(sweep))
    click.echo(f"\n{sweep.words}\n{page}")


def _draw(sweep: Sweep) -> None:
    from edm2lite.plotting import sweep as plots
    from edm2lite.sweep.cells import varying

    picture, axes = sweep.options.folder / "sweep.png", varying(sweep.points)
    metric, title = sweep.metric.name, sweep.title
    if len(axes) == 1:
        plots.plot_curve(picture, sweep.points, sweep.verdict, metric, title)
    elif "group" in axes:
        plots.plot_groups(picture, sweep.points, metric, title)
    else:
        plots.plot_heat(picture, sweep.points, metric, title)


def _table(sweep: Sweep) -> str:
    from edm2lite.sweep.cells import varying
    from edm2lite.sweep.table import named

    axes, metric, best = varying(sweep.points), sweep.metric, sweep.best
    number, limit = metric.number_format, "" if best.low is None else metric.number_format
    columns = dict.fromkeys(axes, "") | {"gamma": "", metric.label: number, "from": limit}
    columns |= {"to": limit, "images": "d", "": ""}
    rows = [
        [
            *(named(axis, getattr(p, axis)) for axis in axes),
            "" if p.gamma is None else f"{p.gamma:.3f}",
            p.value,
            "" if p.low is None else p.low,
            "" if p.high is None else p.high,
            p.num,
            "best" if p is best else "",
        ]
        for p in sweep.points
    ]
    return table(columns, rows)
