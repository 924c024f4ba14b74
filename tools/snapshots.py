"""``edm2lite snapshots``: what a run has saved, what is wrong with it, and what can go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ._cli import RANGE, ByteBar, CountBar, table, user_errors

if TYPE_CHECKING:
    from edm2lite.ema.doctor import Report


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Read headers only, not every byte.")
@click.option("--range", "span", type=RANGE, default="0.02:0.25", show_default=True, help="Widths.")
@click.option("--thin", is_flag=True, help="List snapshots that can go, with --max-error.")
@click.option("--max-error", type=float, help="Limit of the predicted error for --thin.")
@click.option("--apply", is_flag=True, help="Remove what --thin lists.")
@user_errors
def main(
    run: Path,
    quick: bool,
    span: tuple[float, float],
    thin: bool,
    max_error: float | None,
    apply: bool,
) -> None:
    """Examine the EMA snapshots of RUN: exit code 0 if all is well, 1 if not.

    Reads every byte. Finds damaged, foreign, duplicate and missing files, and predicts what each
    costs. With --thin, lists snapshots without which every length of the range, at the latest time,
    still has a predicted error below --max-error; averages that end earlier become worse.

    \b
    Examples:
      edm2lite snapshots runs/digits
      edm2lite snapshots runs/digits --thin --max-error 0.01 --range 0.04:0.20
    """
    from edm2lite.ema.doctor import examine
    from edm2lite.ema.planning import lengths_between

    if thin != (max_error is not None) or (apply and not thin):
        raise click.UsageError("--thin needs --max-error and the other way round; --apply both")
    report = examine(run, lengths_between(*span), quick=quick, progress=ByteBar("check"))
    if max_error is not None:
        return _thin(report, max_error, apply)
    _show(report)
    if report.findings:
        raise click.ClickException(f"{len(report.findings)} things are wrong in {run}, see above")


def _show(report: Report) -> None:
    states = {f.path: f.state for f in report.findings}
    columns = {"nimg": "d", "sigma_rel": ".5f", "dtype": "", "MiB": ".1f", "state": "", "file": ""}
    rows, others = [], []
    for file in report.files:
        size, state = file.path.stat().st_size / 2**20, states.get(file.path, "ok")
        if (i := file.info) is None:
            others.append(f"{state}: {file.path.name}, {size:.1f} MiB")
        else:
            rows.append([i.nimg, i.sigma_rel, i.dtype, size, state, file.path.name])
    click.echo("\n".join([table(columns, rows), *others]))
    if report.num_thinned:
        click.echo(f"{report.num_thinned} more were removed by --thin")
    for finding in report.findings:
        click.echo(f"\n{finding.state}: {finding.what}")
        if finding.sigma_rel is not None:
            click.echo(
                f"  adds {finding.cost:.1e} to the predicted error of sigma_rel"
                f" {finding.sigma_rel:.4f}: {finding.error:.1e}"
            )
    if len(report.errors):
        pairs = zip(report.sigma_rels, report.errors, strict=True)
        click.echo(f"\nPredicted errors at nimg = {report.sound[-1].nimg} from what is sound:")
        click.echo(table({"sigma_rel": ".4f", "predicted error": ".1e"}, pairs))


def _thin(report: Report, max_error: float, apply: bool) -> None:
    from edm2lite.ema.thinning import plan_thinning, remove

    wrong = [f for f in report.findings if f.path is not None]
    if wrong or not report.sound:
        raise ValueError(
            "thinning needs a folder in which every file is sound,"
            f" {wrong[0].what if wrong else 'there is no snapshot in it'}"
        )
    gone, error = plan_thinning(report.sound, report.sigma_rels, max_error, CountBar("thin"))
    click.echo("\n".join(str(info.path) for info in gone))
    size, kept = sum(i.path.stat().st_size for i in gone), len(report.sound) - len(gone)
    click.echo(f"{kept} of {len(report.sound)} snapshots keep the worst error at {error:.1e}")
    click.echo(f"{remove(gone)} bytes freed" if apply else f"{size} bytes could be freed; --apply")


if __name__ == "__main__":
    main()
