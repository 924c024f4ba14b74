"""``edm2lite plan``: which averages to store, how often and in which type, before training."""

from __future__ import annotations

import itertools

import click

from edm2lite.dtypes import DTYPES
from edm2lite.ema import planning
from edm2lite.units import format_count

from ._cli import COUNT, FLOATS, PARAMS, RANGE, progress, table, user_errors


@click.command()
@click.option("--duration", type=COUNT, required=True, help="Images in the run, e.g. 2048Mi.")
@click.option("--params", type=PARAMS, required=True, help="Parameters, e.g. 280M or 1.5B.")
@click.option(
    "--range", "span", type=RANGE, default="0.02:0.25", show_default=True,
    help="Relative widths (sigma_rel) to rebuild at the end of the run.",
)  # fmt: skip
@click.option(
    "--sigma-rels", type=FLOATS, multiple=True, help="Tracked lengths, e.g. 0.05,0.10; repeatable."
)
@click.option("--every", type=COUNT, multiple=True, help="Images between snapshots; repeatable.")
@click.option(
    "--dtype", "dtypes", type=click.Choice(DTYPES), multiple=True,
    help="Stored type; repeatable. [default: float32 and float16]",
)  # fmt: skip
@click.option("--max-error", type=float, help="Mark the cheapest choice below this error.")
@click.option(
    "--movement", type=float, default=planning.MOVEMENT, show_default=True,
    help="Assumed RMS movement of the weights over the run / their RMS (digits: 0.33).",
)  # fmt: skip
@user_errors
def main(
    duration: int,
    params: int,
    span: tuple[float, float],
    sigma_rels: tuple[list[float], ...],
    every: tuple[int, ...],
    dtypes: tuple[str, ...],
    max_error: float | None,
    movement: float,
) -> None:
    """Compare ways to store EMA snapshots: worst error over the range, and disk space.

    Errors are those of weights that walk at random at a constant rate; --movement says how far.
    They are relative to the L2 norm of the weights and hold at the end of the run.

    \b
    Example:
      edm2lite plan --duration 2048Mi --params 280M --range 0.015:0.25 --max-error 0.01
    """
    targets = planning.lengths_between(*span)
    grid = list(
        itertools.product(
            [tuple(s) for s in sigma_rels] or planning.PROFILES,
            every or planning.cadences(duration),
            dtypes or ("float32", "float16"),
        )
    )
    choices = [
        planning.assess(
            *one, duration=duration, num_params=params, target_sigma_rels=targets, movement=movement
        )
        for one in progress(grid, desc="plan")
    ]
    choices.sort(key=lambda c: (c.num_bytes, c.worst_error))
    best = planning.cheapest(choices, max_error) if max_error is not None else None
    columns = {"tracked": "", "every": "", "dtype": "", "files": "d", "GB": ".1f"}
    rows = [
        [",".join(f"{s:g}" for s in c.sigma_rels), format_count(c.every), c.dtype, c.num_files]
        + [c.num_bytes / 1e9, c.worst_error, c.worst_sigma_rel, "<- cheapest" if c is best else ""]
        for c in choices
    ]
    click.echo(table({**columns, "worst error": ".1e", "at sigma_rel": ".3f", " ": ""}, rows))
    if max_error is not None and best is None:
        raise ValueError(f"none of these stays below {max_error:g}; store more often or in float32")


if __name__ == "__main__":
    main()
