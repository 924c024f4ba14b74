"""``edm2lite snapshots``: check the EMA snapshots of a run, and thin them out."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2lite.messages.commands import Command

from ._cli import RANGE, ByteBar, CountBar, FileBar, table, user_errors

if TYPE_CHECKING:
    from edm2lite.ema.doctor import Report


_LONG = 40
"""Largest number of files that are listed one by one."""

_ENDS = 4
"""Number of files that a shortened list shows at each end."""


@click.command(cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Read headers only, not every byte.")
@click.option(
    "--range", "span", type=RANGE, default="0.02:0.25", show_default=True,
    help="Range of EMA lengths for which errors are predicted.",
)  # fmt: skip
@click.option("--thin", is_flag=True, help="List snapshots that --max-error allows to delete.")
@click.option("--max-error", type=float, help="Limit of the predicted error for --thin.")
@click.option("--apply", is_flag=True, help="Delete the snapshots that --thin lists.")
@click.option("-v", "--verbose", is_flag=True, help="List every file, however many there are.")
@user_errors
def main(
    run: Path,
    quick: bool,
    span: tuple[float, float],
    thin: bool,
    max_error: float | None,
    apply: bool,
    verbose: bool,
) -> None:
    """Check the EMA snapshots of RUN; the exit code is 0 if there is no problem, and 1 otherwise.

    Every byte is read. Damaged, foreign, duplicate and missing files are listed, with the predicted
    error that each adds. With --thin, the command lists snapshots that can be deleted while every
    length of the range keeps a predicted error below --max-error at the latest time; averages that
    end earlier become less accurate. Of more than 40 files, the first, the last and those with a
    problem are listed.

    \b
    Examples:
      edm2lite snapshots runs/digits
      edm2lite snapshots runs/digits --thin --max-error 0.01 --range 0.04:0.20
    """
    from edm2lite.ema.doctor import examine
    from edm2lite.ema.planning import lengths_between
    from edm2lite.ema.thinning import claim_thinning

    if thin != (max_error is not None) or (apply and not thin):
        raise click.UsageError("give --thin together with --max-error, and --apply with both")
    with claim_thinning(run) if apply else nullcontext():
        report = examine(
            run, lengths_between(*span), quick=quick, progress=ByteBar("check"),
            headers=FileBar("headers"),
        )  # fmt: skip
        if not report.files:
            raise ValueError(f"{run} holds no snapshot; give a run that has saved some")
        if max_error is not None:
            return _thin(report, max_error, apply)
    _show(report, math.inf if verbose else _LONG)
    if count := len(report.findings):
        problems = "1 problem" if count == 1 else f"{count} problems"
        raise click.ClickException(f"{problems} found in {run}, see above")
    checked = "by their headers" if quick else "in every byte"
    number = len(report.files)
    files = "1 file, intact" if number == 1 else f"{number} files, all intact"
    click.echo(f"\n{files} ({checked})")


def _show(report: Report, most: float) -> None:
    states = {f.path: f.state for f in report.findings}
    columns = {"nimg": "d", "EMA length": "s", "dtype": "", "MiB": ".1f", "state": "", "file": ""}
    rows, others = [], []
    for file in report.files:
        size, state = file.path.stat().st_size / 2**20, states.get(file.path, "ok")
        if (i := file.info) is None:
            others.append(f"{state}: {file.path.name}, {size:.1f} MiB")
        else:
            length = "raw" if i.is_raw else f"{i.sigma_rel:.5f}"
            size = i.header.data_bytes / 2**20 if i.header.shards else size
            rows.append([i.nimg, length, i.dtype, size, state, file.path.name])
    if left_out := _shorten(rows, most):
        others.append(f"{left_out} more are ok; -v lists them")
    click.echo("\n".join([table(columns, rows), *others]))
    if report.num_thinned:
        click.echo(f"{report.num_thinned} more were deleted by --thin")
    for finding in report.findings:
        click.echo(f"\n{finding.state}: {finding.message}")
        if finding.sigma_rel is not None:
            click.echo(
                f"  adds {finding.cost:.1e} to the predicted error of EMA length"
                f" {finding.sigma_rel:.4f}: {finding.error:.1e}"
            )
    if len(report.errors):
        pairs = zip(report.sigma_rels, report.errors, strict=True)
        end = report.intact[-1].nimg
        click.echo(f"\nPredicted errors at nimg = {end} from the intact snapshots:")
        click.echo(table({"EMA length": ".4f", "predicted error": ".1e"}, pairs))


def _shorten(rows: list[list[Any]], most: float) -> int:
    """Take rows without a problem out of the middle of a long table; their number."""
    if len(rows) <= most:
        return 0
    middle = range(_ENDS, len(rows) - _ENDS)
    kept = [row for i, row in enumerate(rows) if i not in middle or row[4] != "ok"]
    left_out = len(rows) - len(kept)
    rows[:] = kept
    return left_out


def _thin(report: Report, max_error: float, apply: bool) -> None:
    from edm2lite.ema.thinning import plan_thinning, remove

    faults = [f for f in report.findings if f.path is not None]
    if faults or not report.intact:
        raise ValueError(
            "thinning needs a folder in which every file is intact,"
            f" {faults[0].message if faults else 'there is no snapshot in it'}"
        )
    unneeded, error = plan_thinning(report.intact, report.sigma_rels, max_error, CountBar("thin"))
    click.echo("\n".join(str(info.path) for info in unneeded))
    size, total = sum(i.path.stat().st_size for i in unneeded), len(report.intact)
    click.echo(f"the largest error of the other {total - len(unneeded)} of {total} is {error:.1e}")
    click.echo(f"{remove(unneeded)} bytes freed" if apply else f"--apply would free {size} bytes")


if __name__ == "__main__":
    main()
