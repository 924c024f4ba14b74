"""``edm2lite dataset info``: the contents of a data set in numbers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import click
import numpy as np

from edm2lite.messages.commands import Command

from ._cli import table, user_errors

if TYPE_CHECKING:
    from edm2lite.dataset import ImageDataset
    from edm2lite.dataset.summary import DatasetSummary


LISTED = 40
"""Number of classes that are listed unless all are asked for."""


@click.command(cls=Command)
@click.argument("source", metavar="DATASET")
@click.option(
    "--sample",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Number of images on which mean and standard deviation are measured.",
)
@click.option("--all-classes", is_flag=True, help="List every class, however many there are.")
@user_errors
def main(source: str, sample: int, all_classes: bool) -> None:
    """Print what DATASET holds: images, sizes, classes, captions, conditions, mean and deviation.

    \b
    Example:
      edm2lite dataset info latents
    """
    from edm2lite.dataset import open_dataset, summarize

    dataset = open_dataset(source)
    summary = summarize(dataset, sample)
    listed = dataset.label_dim if all_classes else LISTED
    for lines in (_sizes, partial(_classes, listed=listed), _captions, _conditions, _values):
        for line in lines(dataset, summary):
            click.echo(line)


def _sizes(dataset: ImageDataset, summary: DatasetSummary) -> Iterator[str]:
    kind = "pixels" if dataset.encoder is None else "latents"
    yield f"{dataset.name}: {len(dataset)} images as {kind}, {dataset.image_shape[0]} channels"
    if len(summary.sizes) == 1:
        yield f"size: {summary.sizes[0][0]} x {summary.sizes[0][1]}"
    else:
        yield table({"height": "d", "width": "d", "images": "d"}, summary.sizes)


def _classes(dataset: ImageDataset, summary: DatasetSummary, listed: int) -> Iterator[str]:
    from edm2lite.dataset.checks import notes
    from edm2lite.models.class_names import class_title

    counts = summary.class_counts
    if dataset.labels is None:
        yield "classes: none"
    elif counts is None:
        yield f"labels: vectors of {dataset.label_dim} numbers"
    else:
        yield (
            f"classes: {dataset.label_dim}, with {counts.min()} to {counts.max()} images (median"
            f" {np.median(counts):g})"
        )
        names = dataset.class_names
        if names or listed > LISTED:
            rows = [(k, class_title(names, k), n) for k, n in enumerate(counts[:listed].tolist())]
            yield table({"number": "d", "class": "", "images": "d"}, rows)
            if listed < dataset.label_dim:
                yield f"and {dataset.label_dim - listed} more; --all-classes lists them"
    for note in notes(dataset):
        yield f"note: {note}"


def _captions(dataset: ImageDataset, summary: DatasetSummary) -> Iterator[str]:
    if dataset.captions is not None:
        yield f"captions: {dataset.captions.describe()}"


def _conditions(dataset: ImageDataset, summary: DatasetSummary) -> Iterator[str]:
    for description, values in summary.conditions:
        measured = ""
        if values is not None:
            measured = (
                f", mean {values.total_mean:.3f} and standard deviation {values.total_std:.3f} as a"
                " network sees it (0 and 1 are best)"
            )
        yield f"condition: {description}{measured}"


def _values(dataset: ImageDataset, summary: DatasetSummary) -> Iterator[str]:
    values, encoder = summary.values, dataset.encoder
    if encoder is None:
        yield (
            f"of {values.count} images as -1..1: mean {values.total_mean:.3f}, standard deviation"
            f" {values.total_std:.3f} (sigma_data is 0.5)"
        )
        shift, scale = summary.standardizing
        yield f"for exactly 0 and 0.5: encoder: {{shift: {shift:.2f}, scale: {scale:.2f}}}"
        return
    if encoder.mean:
        yield f"autoencoder: {encoder.vae}, images of {encoder.input_range}"
        form = f"standardized (to mean 0, sigma_data {encoder.sigma_data})"
    else:
        yield "autoencoder: unknown; set encoder.vae, .input_range, .mean and .std to train on it"
        form = "as they are"
    yield f"of {values.count} latents, {form}:"
    rows = [(str(c), values.mean[c], values.std[c]) for c in range(len(values.mean))]
    yield table({"channel": "", "mean": ".4f", "std": ".4f"}, rows)
