"""``edm2lite plot``: the curves of a run as a picture, without TensorBoard."""

from __future__ import annotations

from pathlib import Path

import click

from edm2lite.messages.commands import Command
from edm2lite.plotting.run_curves import plot_run, read_stats

from ._cli import user_errors


@click.command(cls=Command)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="PNG to draw into. [default: RUN/curves.png]",
)
@user_errors
def main(run: Path, out: Path | None) -> None:
    """Draw loss, loss and uncertainty by noise level, rates and speed of the training run RUN.

    \b
    Example:
      edm2lite plot runs/digits
    """
    path = out or run / "curves.png"
    lines = read_stats(run)
    plot_run(path, lines, f"{run}, {lines[-1]['nimg']} images")
    click.echo(path)


if __name__ == "__main__":
    main()
