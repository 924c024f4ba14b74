"""``edm2lite classifier``: the digit classifier whose features the demo compares."""

from __future__ import annotations

from pathlib import Path

import click

from ._cli import progress, user_errors


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Output file for the weights.",
)
@user_errors
def main(out: Path) -> None:
    """Train a small classifier of scikit-learn's digits, in seconds.

    It serves as the feature extractor `digits` where Inception's weights are not at hand.

    \b
    Example:
      edm2lite classifier --out runs/digits/classifier.safetensors
    """
    from edm2lite.tensorfile import verify

    if out.is_file():
        verify(out)
        click.echo(f"{out} is there already")
        return
    from edm2lite.metrics.digits_classifier import train_classifier

    accuracy = train_classifier(
        out, progress=lambda epochs: progress(epochs, desc="train classifier", unit="epoch")
    )
    click.echo(f"{out}: {accuracy:.1%} of held-out digits right")
