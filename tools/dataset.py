"""``edm2lite dataset``: from a folder of images to what a run trains on."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from edm2lite.messages.commands import Group

from ._cli import CountBar, user_errors
from .dataset_convert import main as convert
from .dataset_encode import main as encode
from .dataset_encode_captions import main as encode_captions
from .dataset_info import main as info

SOURCE = click.argument("source", metavar="DATASET")


@click.group(cls=Group)
def main() -> None:
    """From a folder of images to what a run trains on.

    \b
    Typical order of the commands:
      edm2lite dataset convert photos photos-512.zip --resolution 512
      edm2lite dataset verify photos-512.zip
      edm2lite dataset encode photos-512.zip latents --vae stabilityai/sd-vae-ft-mse
      edm2lite train CONFIG --set data.source=latents --out runs/photos
    """


@main.command()
@SOURCE
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Number of reader threads.",
)
@user_errors
def verify(source: str, threads: int) -> None:
    """Read everything in DATASET and name what is damaged; exit with code 1 if anything is.

    \b
    Example:
      edm2lite dataset verify photos-512.zip
    """
    from edm2lite.dataset import find_problems, open_dataset
    from edm2lite.dataset.checks import notes

    dataset = open_dataset(source)
    num_problems = 0
    for problem in find_problems(dataset, threads, CountBar("verify")):
        num_problems += 1
        click.echo(problem)
    for note in notes(dataset):
        click.echo(f"note: {note}")
    if num_problems:
        plural = "" if num_problems == 1 else "s"
        click.echo(f"{num_problems} problem{plural} found in the {len(dataset)} images of {source}")
        sys.exit(1)
    click.echo(f"{len(dataset)} images in {source}, all intact")


@main.command()
@SOURCE
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="PNG file for the contact sheet.",
)
@click.option(
    "--num", type=click.IntRange(1), default=64, show_default=True, help="Number of images."
)
@click.option(
    "--columns", type=click.IntRange(1), default=8, show_default=True, help="Images per row."
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    help="Seed of the choice of images; of each class, an equal number is taken.",
)
@click.option("--decode", is_flag=True, help="Decode latents instead of drawing false colors.")
@user_errors
def preview(source: str, out: Path, num: int, columns: int, seed: int, decode: bool) -> None:
    """Draw images of DATASET, class and caption below, condition images to the right.

    \b
    Example:
      edm2lite dataset preview latents --decode --out sheet.png
    """
    from edm2lite.dataset import draw_preview, open_dataset

    draw_preview(open_dataset(source), out, num, columns, seed, decode=decode)
    click.echo(f"{out}")


main.add_command(convert, "convert")
main.add_command(encode, "encode")
main.add_command(encode_captions, "encode-captions")
main.add_command(info, "info")
