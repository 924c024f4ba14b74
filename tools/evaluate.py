"""``edm2lite evaluate``: feature statistics of image sets, and distances between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ._cli import progress, user_errors

if TYPE_CHECKING:
    from torch import Tensor

    from edm2lite.dataset import ImageDataset
    from edm2lite.fidelity import FeatureStats

_WEIGHTS = click.option(
    "--weights",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the extractor's weights. [default: downloaded by torch-fidelity]",
)


@click.group()
def main() -> None:
    """Feature statistics of image sets, and the Fréchet distance between them."""


@main.command()
@click.argument("dataset")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="File for the statistics.",
)
@click.option(
    "--extractor",
    default="inception-v3-compat",
    show_default=True,
    help="Feature extractor in torch-fidelity's registry; `digits` is ours.",
)
@_WEIGHTS
@user_errors
def stats(dataset: str, out: Path, extractor: str, weights: Path | None) -> None:
    """Write the feature statistics of DATASET: `digits`, or a folder or ZIP of images.

    \b
    Example:
      edm2lite evaluate stats digits --extractor digits \\
          --weights runs/digits/classifier.safetensors --out runs/digits/reference.safetensors
    """
    measured = _measure(dataset, extractor, weights)
    measured.save(out)
    click.echo(f"{out}: {measured.count} images, {len(measured.mean)} features ({extractor})")


@main.command()
@click.argument("images")
@click.option(
    "--ref",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Statistics made by `edm2lite evaluate stats`.",
)
@_WEIGHTS
@user_errors
def fid(images: str, ref: Path, weights: Path | None) -> None:
    """Print the Fréchet distance of IMAGES (a folder or ZIP) to the reference statistics.

    \b
    Example:
      edm2lite evaluate fid runs/digits/best --ref runs/digits/reference.safetensors
    """
    from edm2lite.fidelity import FeatureStats, extractor_weights, frechet_distance

    reference = FeatureStats.load(ref)
    measured = _measure(images, reference.extractor, extractor_weights(reference, weights))
    click.echo(f"{frechet_distance(measured, reference):.4f}")


def _measure(source: str, extractor: str, weights: Path | None) -> FeatureStats:
    import torch

    from edm2lite.dataset import open_dataset
    from edm2lite.fidelity import feature_stats, open_extractor

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset = open_dataset(source)
    if dataset.encoder is not None:
        raise ValueError(f"{source} holds latents; give the images that they were made of")
    opened = open_extractor(extractor, weights, device)
    return feature_stats(_batches(dataset), opened, source)


def _batches(dataset: ImageDataset, size: int = 64) -> Iterator[Tensor]:
    import torch

    for begin in progress(range(0, len(dataset), size), desc="features", unit="batch"):
        yield torch.from_numpy(dataset.images(range(begin, min(begin + size, len(dataset)))))
