"""``reconstruct_ema``: EMA weights of any length from the snapshots of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

import edm2lite
from edm2lite.dtypes import DTYPES

from ._cli import COUNT, FLOATS, ByteBar, table, user_errors

_PATH = click.Path(path_type=Path)
_DTYPES = click.Choice(DTYPES)
_SOLVERS = click.Choice(["calibrated", "paper"])


@click.command()
@click.argument("run", type=_PATH)
@click.option("--sigma-rel", type=FLOATS, help="Relative widths, e.g. 0.05,0.10 or 0.02:0.25:0.01.")
@click.option("--gamma", type=FLOATS, help="Exponents, e.g. 6.94, in place of --sigma-rel.")
@click.option("--at", "nimg", type=COUNT, metavar="NIMG", help="End in images. [default: latest]")
@click.option("--out", type=_PATH, help="Folder for the files. [default: RUN/ema]")
@click.option("--dtype", type=_DTYPES, help="Of the rebuilt weights. [default: of the snapshots]")
@click.option(
    "--solver", type=_SOLVERS, default="calibrated", show_default=True, help="`paper`: Algorithm 3."
)
@click.option("--max-error", type=float, default=0.02, help="Refuse above it. [default: 0.02]")
@click.option("--dry-run", is_flag=True, help="Print the table and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list in place of the table.")
@click.option("--verify", type=_PATH, help="Rebuild this earlier result and compare.")
@click.version_option(edm2lite.__version__)
@user_errors
def main(
    run: Path,
    sigma_rel: list[float] | None,
    gamma: list[float] | None,
    nimg: int | None,
    out: Path | None,
    dtype: str | None,
    solver: str,
    max_error: float,
    dry_run: bool,
    as_json: bool,
    verify: Path | None,
) -> None:
    """Rebuild EMA weights of any length from the snapshots of RUN.

    All lengths are rebuilt in one pass over the files. Predicted errors are of the weights,
    relative to their norm, the rounding of --dtype included. A file that is there already, from
    the same snapshots, is left as it is. Nothing is written if a predicted error is above
    --max-error.

    \b
    Examples:
      reconstruct_ema runs/digits --sigma-rel 0.02:0.25:0.01 --out runs/digits/ema
      reconstruct_ema runs/digits --verify runs/digits/ema/ema-0.10000-0000064000.safetensors
    """
    if (sigma_rel, gamma, verify).count(None) != 2:
        raise click.UsageError("give the lengths with either --sigma-rel or --gamma, or --verify")
    import torch

    from edm2lite.ema import reconstruction as rec
    from edm2lite.ema import targets
    from edm2lite.ema.verification import verify_reconstruction

    if verify is not None:
        count = verify_reconstruction(verify, run, ByteBar("verify"))
        return click.echo(f"{verify}: as rebuilt from {count} snapshots of {run}")
    out = out if out is not None else run / "ema"
    plans = rec.plan_targets(
        run, sigma_rel=sigma_rel, gamma=gamma, nimg=nimg, solver=solver, anywhere=True
    )
    kind = getattr(torch, dtype or plans[0].inputs[-1].dtype)
    plans = [plan.stored_as(kind) for plan in plans]
    paths = rec.output_paths(out, plans)
    if not dry_run:
        targets.check_error(plans, max_error)
        pairs = zip(plans, paths, strict=True)
        todo = [plan for plan, path in pairs if not rec.is_current(path, plan, kind)]
        if todo:
            averages = "1 average" if len(todo) == 1 else f"{len(todo)} averages"
            bar = ByteBar(f"{averages} from {len(plans[0].inputs)} snapshots")
            list(rec.build(todo, out=out, dtype=kind, progress=bar))
    keys = ("sigma_rel", "gamma", "nimg", "predicted_error", "sum_abs")
    rows = [{key: getattr(plan, key) for key in keys} for plan in plans]
    for row, path in zip(rows, paths, strict=True):
        row |= {"file": str(path), "above_max_error": not row["predicted_error"] <= max_error}
    click.echo(json.dumps(rows, indent=1) if as_json else _table(rows))


def _table(rows: list[dict[str, Any]]) -> str:
    columns = {"sigma_rel": ".4f", "gamma": ".3f", "predicted error": ".1e", "sum |x|": ".2f"}
    cells = [
        [row["sigma_rel"], row["gamma"], row["predicted_error"], row["sum_abs"]]
        + ["none: above --max-error" if row["above_max_error"] else row["file"]]
        for row in rows
    ]
    return table({**columns, "file": ""}, cells)


if __name__ == "__main__":
    main()
