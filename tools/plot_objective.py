"""``edm2lite plot-objective``: the objectives of configurations, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edm2lite.messages.commands import Command

from ._cli import plugin_option, table, user_errors
from ._notes import can_draw

if TYPE_CHECKING:
    from edm2lite.diffusion.objective import Objective


@click.command(cls=Command)
@click.argument("configs", nargs=-1, required=True)
@click.option(
    "--std",
    type=click.FloatRange(0, min_open=True),
    help="Standard deviation of the images. [default: sigma_data]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default="objectives.png",
    show_default=True,
    help="PNG to draw into.",
)
@plugin_option
@user_errors
def main(configs: tuple[str, ...], std: float | None, out: Path) -> None:
    """Draw how much weight the objectives of CONFIGS give to each noise level.

    Each of CONFIGS is a YAML file, a run, or the name of a shipped configuration. The picture shows
    the effective weight, which is the weight of the loss times the density of training levels (for
    the squared error of v, scaled to area 1); the density alone; and the magnitudes of the
    network's input and target, which are 1 if the images have standard deviation net.sigma_data.
    The table shows quantiles of the effective weight and the share of samples that are pure noise.

    \b
    Example:
      edm2lite plot-objective digits runs/flow --out objectives.png
    """
    from edm2lite.plotting.objectives import plot_objectives

    from ._config import objective

    is_drawn = can_draw("out")
    found = {source: objective(source) for source in dict.fromkeys(configs)}
    click.echo(_table(found))
    if is_drawn:
        plot_objectives(out, found, std)
        click.echo(str(out))


def _table(found: Mapping[str, Objective]) -> str:
    from edm2lite.plotting.objectives import weight_quantiles

    rows = []
    for name, o in found.items():
        low, middle, high = weight_quantiles(o, (0.16, 0.5, 0.84))
        parts = [o.net.parametrization, o.weighting.kind, o.loss.kind]
        rows.append([name, *parts, low, middle, high, f"{o.loss.mass_at_infinity:g}"])
    columns = {"configuration": "", "prediction": "", "weighting": "", "density": ""}
    return table({**columns, "16 %": ".3g", "median": ".3g", "84 %": ".3g", "infinite": ""}, rows)
