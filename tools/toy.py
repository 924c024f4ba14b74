"""``edm2lite toy``: guidance on a density in the plane, in numbers and in a picture."""

from __future__ import annotations

import time
from pathlib import Path

import click

from edm2lite.messages.commands import Command

from ._cli import COUNT, progress, table, user_errors
from ._notes import can_draw


@click.command(cls=Command)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default="toy.png",
    show_default=True,
    help="PNG to draw into.",
)
@click.option(
    "--num", type=COUNT, default=16384, show_default=True, help="Number of points of each kind."
)
@click.option(
    "--cfg", type=float, default=2.0, show_default=True, help="Weight of classifier-free guidance."
)
@click.option(
    "--autoguidance", type=float, default=1.5, show_default=True, help="Weight of autoguidance."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the training."
)
@user_errors
def main(out: Path, num: int, cfg: float, autoguidance: float, seed: int) -> None:
    """Compare guidance on a density in the plane, where the truth is known.

    Trains a denoiser of points and two guides, samples without guidance, with classifier-free
    guidance and with autoguidance, scores the samples and draws them. The data are two trees of 127
    branches, one per class. `off` is the share of samples where the density is lower than at 99 %
    of the data; `covered` the share of the data on branches that get at least a quarter of the
    samples they should; `matched` the sum over branches of the smaller of their share of the data
    and their share of the samples.

    \b
    Example:
      edm2lite toy --out toy.png
    """  # fmt: skip
    import torch

    from edm2lite.plotting.toy import plot_guidance
    from edm2lite.toy import experiment
    from edm2lite.toy.density import two_trees

    is_drawn = can_draw("out")
    begin = time.perf_counter()
    classes = two_trees()
    limit = experiment.threshold(classes[0])
    steps = sum(config.num_steps for config in experiment.NETWORKS.values())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the layers are so small that threads would only wait for each other
    try:
        with progress(total=steps, desc="train 3 networks", unit="step") as bar:
            points = experiment.compare(classes, num, cfg, autoguidance, bar.update, seed)
        rows = []
        for name, x in points.items():
            score = experiment.score(classes[0], x, limit)
            rows.append([name, 100 * score.off, 100 * score.covered, 100 * score.matched])
        columns = {"": "", "% off": ".1f", "% covered": ".1f", "% matched": ".1f"}
        click.echo(table(columns, rows))
        if is_drawn:
            plot_guidance(out, classes, points, limit)
    finally:
        torch.set_num_threads(threads)
    if is_drawn:
        click.echo(f"{out}  ({time.perf_counter() - begin:.0f} s)")


if __name__ == "__main__":
    main()
