"""``edm2lite toy``: guidance on a density in the plane, in numbers and a picture."""

from __future__ import annotations

import time
from pathlib import Path

import click

from ._cli import COUNT, progress, table, user_errors


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default="toy.png",
    show_default=True,
    help="The picture.",
)
@click.option(
    "--num", type=COUNT, default=16384, show_default=True, help="Points of each kind of guidance."
)
@click.option("--cfg", type=float, default=2.0, show_default=True, help="Weight of CFG.")
@click.option("--autoguidance", type=float, default=1.5, show_default=True, help="Its weight.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all training."
)
@user_errors
def main(out: Path, num: int, cfg: float, autoguidance: float, seed: int) -> None:
    """Train a denoiser of points and two guides, draw samples in three ways, and count.

    The data are two trees of 127 branches, one per class; their density is known, so that every
    sample can be judged. `off`: samples where the density is lower than at 99 % of the data.
    `covered`: the share of the data on branches that get a quarter or more of the samples due to
    them. `matched`: the sum over branches of the smaller of their shares of data and samples.

    \b
    Example:
      edm2lite toy --out toy.png
    """  # fmt: skip
    import torch

    from edm2lite.toy import experiment
    from edm2lite.toy.density import two_trees

    if num < 1:
        raise click.UsageError(f"--num must be at least 1, got {num}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # layers so small that threads would only wait for each other
    begin = time.perf_counter()
    classes = two_trees()
    steps = sum(plan.num_steps for plan in experiment.PLANS.values())
    with progress(total=steps, desc="train 3 networks", unit="step") as bar:
        points = experiment.compare(classes, num, cfg, autoguidance, bar.update, seed)
    limit = experiment.threshold(classes[0])
    rows = []
    for name, x in points.items():
        result = experiment.score(classes[0], x, limit)
        figures = (result.off, result.covered, result.matched)
        rows.append([name, *(100 * figure for figure in figures)])
    columns = {"": "", "% off": ".1f", "% covered": ".1f", "% matched": ".1f"}
    click.echo(table(columns, rows))
    experiment.draw(out, classes, points, limit)
    click.echo(f"{out}  ({time.perf_counter() - begin:.0f} s)")
    torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
