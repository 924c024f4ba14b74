"""``edm2lite plan``: choose which averages to store, how often and in which type."""

from __future__ import annotations

import itertools

import click

from edm2lite.messages.commands import Command
from edm2lite.units import format_count

from ._cli import COUNT, DECAYS, DTYPE, FLOATS, RANGE, progress, table, user_errors


@click.command(cls=Command)
@click.option(
    "--duration", type=COUNT, required=True, help="Number of images or tokens, e.g. 2048Mi or 300G."
)
@click.option("--params", type=COUNT, required=True, help="Number of parameters, e.g. 1.5B.")
@click.option(
    "--range", "span", type=RANGE, default="0.02:0.25", show_default=True,
    help="Range of EMA lengths to rebuild at the end of the run.",
)  # fmt: skip
@click.option(
    "--decay", type=DECAYS,
    help="Decays to emulate at the end of the run, in place of the range of lengths.",
)  # fmt: skip
@click.option(
    "--sigma-rels",
    type=FLOATS,
    multiple=True,
    help="Tracked EMA lengths, e.g. 0.05,0.10; repeatable.",
)
@click.option("--every", type=COUNT, multiple=True, help="Images between snapshots; repeatable.")
@click.option(
    "--dtype", "dtypes", type=DTYPE, multiple=True,
    help="Stored dtype; repeatable. [default: float32 and float16]",
)  # fmt: skip
@click.option("--max-error", type=float, help="Mark the cheapest plan below this error.")
@click.option(
    "--movement", type=float,
    help="Assumed RMS movement of the weights over the run, relative to their RMS. [default: 1]",
)  # fmt: skip
@user_errors
def main(
    duration: int,
    params: int,
    span: tuple[float, float],
    decay: list[str] | None,
    sigma_rels: tuple[list[float], ...],
    every: tuple[int, ...],
    dtypes: tuple[str, ...],
    max_error: float | None,
    movement: float | None,
) -> None:
    """Compare ways to store EMA snapshots by their largest error and disk space.

    The error is the largest over the range of lengths, or over the decays that are to be emulated.

    Errors are predicted for weights that move as a random walk of constant rate, as far as
    --movement says (the digits run: 0.33). They are relative to the L2 norm of the weights, and
    hold at the end of the run.

    \b
    Example:
      edm2lite plan --duration 2048Mi --params 280M --range 0.015:0.25 --max-error 0.01
      edm2lite plan --duration 512Gi --params 7B --decay linear:0.1:0.3:0.1,1-sqrt:0.2
    """
    from edm2lite.ema import planning

    targets = planning.lengths_between(*span) if decay is None else ()
    grid = list(
        itertools.product(
            [tuple(s) for s in sigma_rels] or planning.PROFILES,
            every or planning.cadences(duration),
            dtypes or ("float32", "float16"),
        )
    )
    plans = [
        planning.assess(
            *one,
            duration=duration,
            num_params=params,
            target_sigma_rels=targets,
            target_decays=decay or (),
            movement=planning.MOVEMENT if movement is None else movement,
        )
        for one in progress(grid, desc="plan")
    ]
    plans.sort(key=lambda p: (p.num_bytes, p.worst_error))
    best = planning.cheapest(plans, max_error) if max_error is not None else None
    columns = {"tracked": "", "every": "", "dtype": "", "files": "d", "GB": ".1f"}
    at = {"at EMA length": ".3f"} if decay is None else {"at decay": ""}
    rows = []
    for plan in plans:
        tracked, mark = ",".join(f"{s:g}" for s in plan.sigma_rels), "<- cheapest"
        stored = [tracked, format_count(plan.every), plan.dtype, plan.num_files]
        error = [plan.num_bytes / 1e9, plan.worst_error, plan.worst_decay or plan.worst_sigma_rel]
        rows.append([*stored, *error, mark if plan is best else ""])
    click.echo(table({**columns, "worst error": ".1e", **at, " ": ""}, rows))
    if max_error is not None and best is None:
        raise ValueError(
            f"a plan must stay below {max_error:g}, none of these does; store more often or in"
            " float32"
        )


if __name__ == "__main__":
    main()
