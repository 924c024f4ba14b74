"""``edm2lite dataset info``: what a data set holds, in figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click
import numpy as np

from ._cli import table, user_errors

if TYPE_CHECKING:
    from edm2lite.dataset import ImageDataset


@click.command()
@click.argument("source", metavar="DATASET")
@click.option(
    "--sample",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Images that mean and standard deviation are measured on.",
)
@user_errors
def main(source: str, sample: int) -> None:
    """Print what DATASET holds: images, sizes, classes, mean and standard deviation.

    \b
    Example:
      edm2lite dataset info latents
    """
    from edm2lite.dataset import open_dataset

    dataset = open_dataset(source)
    for lines in (_sizes(dataset), _classes(dataset), _values(dataset, sample)):
        for line in lines:
            click.echo(line)


def _sizes(dataset: ImageDataset) -> Iterator[str]:
    from edm2lite.dataset.summary import size_counts

    kind = "pixels" if dataset.encoder is None else "latents"
    yield f"{dataset.name}: {len(dataset)} images as {kind}, {dataset.image_shape[0]} channels"
    rows = size_counts(dataset)
    if len(rows) == 1:
        yield f"size: {rows[0][0]} x {rows[0][1]}"
    else:
        yield table({"height": "d", "width": "d", "images": "d"}, rows)


def _classes(dataset: ImageDataset) -> Iterator[str]:
    from edm2lite.dataset.checks import notes
    from edm2lite.dataset.summary import class_counts

    counts = class_counts(dataset)
    if dataset.labels is None:
        yield "classes: none"
    elif counts is None:
        yield f"labels: vectors of {dataset.label_dim} numbers"
    else:
        yield (
            f"classes: {dataset.label_dim}, with {counts.min()} to {counts.max()} images (median"
            f" {np.median(counts):g})"
        )
    for warning in notes(dataset):
        yield f"note: {warning}"


def _values(dataset: ImageDataset, sample: int) -> Iterator[str]:
    from edm2lite.dataset.summary import measure
    from edm2lite.models.encoders import LatentEncoder, PixelEncoder

    channels = dataset.image_shape[0]
    if dataset.encoder is None:
        found = measure(dataset, PixelEncoder(), sample)
        yield (
            f"of {found.count} images as -1..1: mean {found.total_mean:.3f}, standard deviation"
            f" {found.total_std:.3f} (sigma_data is 0.5)"
        )
        shift, scale = 127.5 * (1 + found.total_mean), 2 * 127.5 * found.total_std
        yield f"for exactly 0 and 0.5: encoder: {{shift: {shift:.2f}, scale: {scale:.2f}}}"
        return
    encoder = dataset.encoder
    if encoder.mean:
        yield f"autoencoder: {encoder.vae}, images of {encoder.input_range}"
        what = f"standardised (to mean 0, sigma_data {encoder.sigma_data})"
    else:
        yield "autoencoder: not known; set encoder.vae, .input_range, .mean and .std to train on it"
        encoder = LatentEncoder(mean=(0.0,) * channels, std=(encoder.sigma_data,) * channels)
        what = "as they are"
    found = measure(dataset, encoder, sample)
    yield f"of {found.count} latents, {what}:"
    rows = [(str(c), found.mean[c], found.std[c]) for c in range(channels)]
    yield table({"channel": "", "mean": ".4f", "std": ".4f"}, rows)
