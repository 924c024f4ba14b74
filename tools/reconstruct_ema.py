"""``reconstruct_ema``: EMA weights of any length from the snapshots of a run."""

from __future__ import annotations

from pathlib import Path

import click

from ._cli import COUNT, FLOATS, ByteBar, user_errors


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--sigma-rel", type=FLOATS, help="Relative widths, e.g. 0.05,0.10 or 0.02:0.25:0.01.")
@click.option("--gamma", type=FLOATS, help="Exponents, e.g. 6.94, in place of --sigma-rel.")
@click.option(
    "--at",
    "nimg",
    type=COUNT,
    metavar="NIMG",
    help="End of the averages in images, e.g. 64Mi. [default: the latest snapshot]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the files. [default: RUN/ema]",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of the rebuilt weights.",
)
@user_errors
def main(
    run: Path,
    sigma_rel: list[float] | None,
    gamma: list[float] | None,
    nimg: int | None,
    out: Path | None,
    dtype: str,
) -> None:
    """Rebuild EMA weights of any length from the snapshots of RUN.

    All lengths are rebuilt in one pass over the files. A file that is there already, from the same
    snapshots, is left as it is.

    \b
    Example:
      reconstruct_ema runs/digits --sigma-rel 0.02:0.25:0.01 --out runs/digits/ema
    """
    import torch

    from edm2lite.ema.reconstruction import build, is_current, output_paths, plan_targets

    if (sigma_rel is None) == (gamma is None):
        raise click.UsageError("give the lengths with either --sigma-rel or --gamma")
    out = out if out is not None else run / "ema"
    plans = plan_targets(run, sigma_rel=sigma_rel, gamma=gamma, nimg=nimg)
    todo = [
        plan
        for plan, path in zip(plans, output_paths(out, plans), strict=True)
        if not is_current(path, plan, getattr(torch, dtype))
    ]
    if todo:
        bar = ByteBar(f"{len(todo)} averages from {len(plans[0].inputs)} snapshots")
        list(build(todo, out=out, dtype=getattr(torch, dtype), progress=bar))
    click.echo(f"{'sigma_rel':>9}  {'gamma':>8}  {'predicted error':>15}  {'sum |x|':>8}  file")
    for plan, path in zip(plans, output_paths(out, plans), strict=True):
        click.echo(
            f"{plan.sigma_rel:9.4f}  {plan.gamma:8.3f}  {plan.predicted_error:15.1e}"
            f"  {plan.sum_abs:8.2f}  {path}"
        )


if __name__ == "__main__":
    main()
