"""What ``sweep_ema`` leaves behind and prints."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import click

from edm2lite import processes

from ._cli import table

if TYPE_CHECKING:
    from edm2lite.sweep import Sweep


def check_pictures() -> None:
    """Say before the work, on the first process, that there will be no picture, and why."""
    if not _can_draw() and processes.rank() == 0:
        click.echo(
            "no picture will be drawn: plots need matplotlib; pip install 'edm2lite[metrics]'",
            err=True,
        )


def say(lines: list[str]) -> None:
    """Print the choices that were made, on the first process."""
    for line in lines if processes.rank() == 0 else ():
        click.echo(line, err=True)


def _can_draw() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def write(sweep: Sweep) -> None:
    """Write sweep.csv, .md, .html, and .png if matplotlib is there; print table and verdict."""
    page = sweep.write(picture=_can_draw())
    if _can_draw():
        _draw(sweep)
    click.echo(_table(sweep))
    click.echo(f"\n{sweep.words}\n{page}")


def _draw(sweep: Sweep) -> None:
    from edm2lite.plotting import sweep as plots
    from edm2lite.sweep.cells import varying

    picture, axes = sweep.options.folder / f"{sweep.name}.png", varying(sweep.points)
    metric, title = sweep.metric, sweep.title
    if axes == ["decay"]:
        plots.plot_decays(picture, sweep.points, metric, title)
    elif len(axes) == 1:
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
