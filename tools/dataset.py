"""``edm2lite dataset``: from a folder of images to what a run trains on."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ._cli import CountBar, user_errors
from .dataset_convert import main as convert
from .dataset_encode import main as encode
from .dataset_info import main as info

SOURCE = click.argument("source", metavar="DATASET")


@click.group()
def main() -> None:
    """From a folder of images to what a run trains on.

    \b
    A usual course:
      edm2lite dataset convert photos photos-512.zip --resolution 512
      edm2lite dataset verify photos-512.zip
      edm2lite dataset encode photos-512.zip latents --vae stabilityai/sd-vae-ft-mse
      python -m edm2lite.training CONFIG --set data.source=latents --out runs/photos
    """


@main.command()
@SOURCE
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="That read.")
@user_errors
def verify(source: str, threads: int) -> None:
    """Read every image of DATASET and name what is damaged; exit code 1 if anything is.

    \b
    Example:
      edm2lite dataset verify photos-512.zip
    """
    from edm2lite.dataset import open_dataset
    from edm2lite.dataset.checks import find_problems, notes

    dataset = open_dataset(source)
    num_faults = 0
    for fault in find_problems(dataset, threads, CountBar("verify")):
        num_faults += 1
        click.echo(fault)
    for warning in notes(dataset):
        click.echo(f"note: {warning}")
    if num_faults:
        click.echo(f"{num_faults} faults in {len(dataset)} images of {source}")
        sys.exit(1)
    click.echo(f"{len(dataset)} images in {source}, all in order")


@main.command()
@SOURCE
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="PNG file for the contact sheet.",
)
@click.option("--num", type=click.IntRange(1), default=64, show_default=True, help="Images.")
@click.option("--columns", type=click.IntRange(1), default=8, show_default=True, help="Per row.")
@click.option("--seed", default=0, show_default=True, help="Which images; with classes, of each.")
@click.option("--decode", is_flag=True, help="Decode latents, instead of showing them in colours.")
@user_errors
def preview(source: str, out: Path, num: int, columns: int, seed: int, decode: bool) -> None:
    """Draw a contact sheet of DATASET, with the name of the class below each image.

    \b
    Example:
      edm2lite dataset preview latents --decode --out sheet.png
    """
    from edm2lite.dataset import open_dataset
    from edm2lite.dataset.preview import captions, choose, contact_sheet, pictures

    dataset = open_dataset(source)
    if decode and dataset.encoder is None:
        raise ValueError(f"--decode is for latents, {source} holds pixels; leave it out")
    chosen = choose(dataset, num, seed)
    contact_sheet(out, pictures(dataset, chosen, decode), captions(dataset, chosen), columns)
    click.echo(f"{out}")


main.add_command(convert, "convert")
main.add_command(encode, "encode")
main.add_command(info, "info")
