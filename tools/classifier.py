"""``edm2lite classifier``: small networks whose features compare images, trained in minutes."""

from __future__ import annotations

import functools
from pathlib import Path

import click

from edm2lite.messages.commands import Command

from ._cli import COUNT, progress, user_errors


@click.command(cls=Command)
@click.option(
    "--data",
    metavar="DATASET",
    help="Train the extractor `retrieval` on these images. [default: `digits`, on scikit-learn's]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Output file for the weights.",
)
@click.option(
    "--samples",
    type=COUNT,
    default=40_000,
    show_default=True,
    help="Number of augmented images of --data to train on.",
)
@user_errors
def main(data: str | None, out: Path, samples: int) -> None:
    """Train a small network that serves as a feature extractor, without any download.

    Without --data it is a classifier of scikit-learn's digits, the extractor `digits`, trained in
    seconds. With --data it learns to know each image of DATASET again, and is the extractor
    `retrieval`, trained in one or two minutes on a CPU.

    \b
    Examples:
      edm2lite classifier --out runs/digits/classifier.safetensors
      edm2lite classifier --data emoji-32.zip --out emoji-net.safetensors
    """
    from edm2lite.tensorfile import verify

    if out.is_file():
        verify(out)
        click.echo(f"{out} is there already")
        return
    bar = functools.partial(progress, desc="train classifier", unit="epoch")
    if data is None:
        from edm2lite.metrics.digits_classifier import train_classifier

        click.echo(f"{out}: {train_classifier(out, progress=bar):.1%} of held-out digits right")
        return
    from edm2lite.dataset import open_dataset
    from edm2lite.metrics.retrieval import train_retrieval

    found = train_retrieval(open_dataset(data), out, samples, progress=bar)
    click.echo(
        f"{out}: augmented copies of {found.num} held-out images find the original among"
        f" {found.among} images, {found.first:.1%} as the nearest, {found.fifth:.1%} among the five"
        " nearest"
    )
