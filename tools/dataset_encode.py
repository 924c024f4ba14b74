"""``edm2lite dataset encode``: images to latents, by one process or several under torchrun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edm2lite import processes
from edm2lite.messages.commands import Command

from ._cli import CountBar, user_errors
from ._device import device_option


@click.command(cls=Command)
@click.argument("source", metavar="DATASET")
@click.argument("dest", type=click.Path(path_type=Path, file_okay=False))
@click.option("--vae", required=True, help="Folder or hub name of a diffusers AutoencoderKL.")
@click.option(
    "--convention",
    type=click.Choice(["measured", "edm2"]),
    default="measured",
    show_default=True,
    help="Standardize by measured mean and std, or by the constants of the EDM2 paper, which feeds"
    " the autoencoder images of 0..1.",
)
@click.option(
    "--batch",
    "batch_size",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Number of images that are encoded together.",
)
@click.option(
    "--shard",
    "shard_images",
    type=click.IntRange(1),
    default=4096,
    show_default=True,
    help="Number of images per file; an interruption loses at most one file per process.",
)
@click.option(
    "--threads",
    "num_threads",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Number of reader threads.",
)
@device_option
@user_errors
def main(source: str, dest: Path, vae: str, **options: Any) -> None:
    """Encode DATASET to latents in the folder DEST; the same command continues.

    Several processes, on one machine or with one file system, share the work under torchrun.

    \b
    Examples:
      edm2lite dataset encode photos-512.zip latents --vae stabilityai/sd-vae-ft-mse
      torchrun --standalone --nproc_per_node=8 -m edm2lite.tools.edm2lite dataset encode \\
        in512.zip latents --vae stabilityai/sd-vae-ft-mse --convention edm2
    """
    from edm2lite.claim import claim_folder, claim_together
    from edm2lite.dataset import encode_images, open_dataset
    from edm2lite.models.autoencoder import load_autoencoder

    rank, world_size = processes.rank(), processes.world_size()
    if rank == 0:
        options["progress"] = CountBar("encode")
    with claim_together(claim_folder, dest):
        dataset, autoencoder = open_dataset(source), load_autoencoder(vae, str(processes.device()))
        encode_images(dataset, dest, autoencoder, rank=rank, world_size=world_size, **options)
    if rank == 0:
        click.echo(f"{len(dataset)} latents in {dest}")
