"""``edm2lite dataset encode``: images to latents, by one process or several under torchrun."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from ._cli import progress, user_errors


@click.command()
@click.argument("source", metavar="DATASET")
@click.argument("dest", type=click.Path(path_type=Path, file_okay=False))
@click.option("--vae", required=True, help="Folder or hub name of a diffusers AutoencoderKL.")
@click.option(
    "--convention",
    type=click.Choice(["measured", "edm2"]),
    default="measured",
    show_default=True,
    help="Standardise by what is measured; or by the EDM2 paper's constants, with its images of"
    " 0..1.",
)
@click.option(
    "--batch",
    "batch_size",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Images that are encoded together.",
)
@click.option(
    "--shard",
    "shard_images",
    type=click.IntRange(1),
    default=4096,
    show_default=True,
    help="Images per file, and what is lost at most by an interruption.",
)
@click.option(
    "--threads", type=click.IntRange(1), default=2, show_default=True, help="That read images."
)
@user_errors
def main(source: str, dest: Path, vae: str, threads: int, **options: Any) -> None:
    """Encode DATASET to latents in the folder DEST; the same command continues.

    Several processes, on one machine or with one file system, share the work under torchrun.

    \b
    Examples:
      edm2lite dataset encode photos-512.zip latents --vae stabilityai/sd-vae-ft-mse
      torchrun --standalone --nproc_per_node=8 -m edm2lite.tools.edm2lite dataset encode \\
        in512.zip latents --vae stabilityai/sd-vae-ft-mse --convention edm2
    """
    import torch

    from edm2lite.dataset import open_dataset
    from edm2lite.dataset.encode import finish, shards_of_process, write_shards
    from edm2lite.dataset.encode_plan import EncodePlan
    from edm2lite.models.autoencoder import load_autoencoder

    rank, world_size = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1)))
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    plan = EncodePlan(open_dataset(source), dest, load_autoencoder(vae, device), **options)
    total = sum(len(shard.positions) for shard in shards_of_process(plan, rank, world_size))
    with progress(total=total, desc="encode", unit="img", disable=rank > 0 or not total) as bar:
        write_shards(
            plan, rank=rank, world_size=world_size, num_threads=threads, progress=bar.update
        )
    if rank == 0:
        finish(plan)
        click.echo(f"{len(plan.dataset)} latents in {dest}")
