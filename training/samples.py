"""Grids of images from the averages, to look at while a run goes on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from edm2lite.atomic import replacing
from edm2lite.dataset import ImageDataset
from edm2lite.diffusion.precond import Precond
from edm2lite.ema import PowerFunctionEMA
from edm2lite.image_grid import arrange, labeled_mosaic, png
from edm2lite.metrics.held_out_loss import evaluating
from edm2lite.models.class_names import class_title
from edm2lite.models.encoders import Encoder, LatentEncoder
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.conditions import Condition
from edm2lite.network.told import values_of
from edm2lite.sampling import heun, karras_sigmas
from edm2lite.sampling.conditions import class_indices
from edm2lite.sampling.guidance import Conditioned
from edm2lite.seeding import Purpose, normals, rng

from . import distributed
from .hook import Hook

if TYPE_CHECKING:
    from .config import RunConfig
    from .trainer import Trainer

SIDE = 512
"""Pixels of the longer side up to which small grids are enlarged, by a whole factor."""

NUM_GRIDS, MAX_SHARE = 32, 0.02
"""Number of grids in a run, and share of its time that they may take, unless it says otherwise."""

MAX_COLUMNS = 16
"""Largest number of columns of a grid that has one for each class."""


@dataclass(kw_only=True)
class Samples(Hook):
    """Draws a grid of images from each tracked average, for ``RUN/samples`` and the sinks.

    Attributes:
        count: Number of images in a grid.
        num_steps: Number of steps of Heun's method.
    """

    count: int = field(default=32, metadata={"minimum": 1})
    num_steps: int = field(default=16, metadata={"minimum": 1})

    def run(self, trainer: Trainer) -> None:
        """Generate and save; every rank draws its share, and rank 0 decodes and writes."""
        config = trainer.config
        told = told_in_grid(config.net.backbone.conditions, trainer.dataset, self.count)
        grids = sample_grids(
            trainer.net,
            trainer.ema,
            config.encoder,
            told,
            count=self.count,
            num_steps=self.num_steps,
            batch_size=config.microbatch,
            labels=labels_in_grid(told, trainer.dataset),
        )
        for sigma_rel, picture in grids:
            name = f"{trainer.nimg:010d}-{sigma_rel:.5f}.png"
            save_picture(trainer.run_dir / "samples" / name, picture)
            trainer.show(f"samples/sigma_rel {sigma_rel:.5f}", picture)


def sample_interval(config: RunConfig) -> int:
    """Images between two grids: ``sample_nimg``, or what suits the length of the run; 0 for none.

    An evaluation of the network costs a third of a training step of the same images.

    Example:
        >>> from edm2lite.training import load_config
        >>> lengths = ["total_nimg=64000"], ["total_nimg=6400000"]
        >>> [sample_interval(load_config("digits", changes)) for changes in lengths]
        [33088, 200000]
    """
    if config.sample_nimg is not None:
        return config.sample_nimg
    if isinstance(config.encoder, LatentEncoder):
        return 0
    evaluations = config.sample_count * (2 * config.sample_steps - 1) * len(config.ema.sigma_rels)
    images = max(config.total_nimg / NUM_GRIDS, evaluations / 3 / MAX_SHARE)
    return math.ceil(images / config.batch_size) * config.batch_size


def told_in_grid(
    conditions: Sequence[Condition], dataset: ImageDataset, count: int
) -> Conditioning:
    """What the network is told about each image of a grid.

    Where all conditions can be gone through in turn (one class after the other), they are; if any
    cannot, as an image or a text, the conditions are those of images evenly spread over the data
    set.

    Args:
        conditions: What the network takes.
        dataset: Training data.
        count: Number of images in the grid.

    Example:
        >>> from edm2lite.dataset import open_dataset
        >>> from edm2lite.network.conditions import ClassLabel
        >>> told_in_grid([ClassLabel(10)], open_dataset("digits"), 12)["label"][8:].tolist()
        [8, 9, 0, 1]
    """
    if all(condition.in_turn(range(1)) is not None for condition in conditions):
        return values_of(conditions, "in_turn", range(count))
    size = len(dataset)
    rows = [i % size if count > size else i * size // count for i in range(count)]
    return dataset.conditioning(rows, names=[condition.name for condition in conditions])


def sample_grids(
    net: Precond,
    ema: PowerFunctionEMA,
    encoder: Encoder,
    told: Conditioning,
    *,
    count: int,
    num_steps: int,
    batch_size: int,
    labels: Sequence[str] = (),
) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """A grid of images from each tracked average.

    Image i is that of seed i: grids show the same noise under different weights. The network is
    left as it was. Every rank must call this: each draws an equal number of images, in batches of
    one size, which copies of the last image fill up.

    Args:
        net: The denoiser.
        ema: The tracked averages.
        encoder: Encoder that decodes what the network generates.
        told: What the network is told about each of the images.
        count: Number of images.
        num_steps: Number of steps of Heun's method.
        batch_size: Largest number of images that a rank generates at a time.
        labels: Label of each image, or nothing.

    Yields:
        On rank 0, sigma_rel of the average, and the picture [H, W, C] uint8; nothing on others.
    """
    network = net.config.backbone
    device = next(net.parameters()).device
    sigmas = karras_sigmas(num_steps).float().to(device)
    shape = (network.img_channels, network.img_resolution, network.img_resolution)
    share = math.ceil(count / distributed.world_size())
    rows = min(batch_size, share)
    for sigma_rel in ema.sigma_rels:
        drawn = []
        with evaluating(net), ema.applied(sigma_rel):
            for begin in range(0, share, rows):
                first = distributed.rank() * share + begin
                seeds = [min(seed, count - 1) for seed in range(first, first + rows)]
                x = normals([rng(seed, 0, Purpose.GENERATION) for seed in seeds], shape).to(device)
                part = told.rows(seeds).to(device)
                drawn.append(heun(Conditioned(net, part), x * sigmas[0], sigmas).cpu())
        shares = distributed.gather(torch.cat(drawn)[:share])
        if distributed.rank() == 0:
            parts = torch.cat(shares)[:count].split(rows)
            images = torch.cat([encoder.decode(part.to(device)).cpu() for part in parts])
            yield sigma_rel, tile(images.numpy(), labels)


def labels_in_grid(told: Conditioning, dataset: ImageDataset) -> list[str]:
    """Name of the class of each image of a grid; empty if the classes have no names.

    Example:
        >>> from edm2lite.dataset import open_dataset
        >>> labels_in_grid(Conditioning({"label": torch.tensor([7, 3])}), open_dataset("digits"))
        ['7', '3']
    """
    classes = class_indices(told) if dataset.class_names else None
    return [class_title(dataset.class_names, k) for k in classes or ()]


def tile(images: NDArray[np.uint8], labels: Sequence[str] = ()) -> NDArray[np.uint8]:
    """One picture of N images, about twice as wide as high, enlarged if small.

    Few labels that come in turn, as those of classes do, are those of columns.

    Args:
        images: [N, C, H, W] uint8.
        labels: Label of each image, or nothing.

    Returns:
        [H, W, C] uint8, C as that of the images.

    Example:
        >>> tile(np.zeros((32, 3, 64, 64), np.uint8)).shape
        (256, 512, 3)
    """
    num, _, height, width = images.shape
    columns = math.ceil(math.sqrt(2 * num))
    if labels:
        turn = len(set(labels))
        columns = turn * max(1, columns // turn) if turn <= MAX_COLUMNS else columns
    rows = math.ceil(num / columns)
    zoom = max(1, SIDE // max(rows * height, columns * width))
    if labels:
        picture = labeled_mosaic(list(images), columns, labels, zoom=zoom)
    else:
        picture = arrange(images, columns, zoom=zoom, background=0)
    return np.moveaxis(picture, 0, -1)


def save_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write a picture [H, W, 1 or 3] uint8 as PNG, atomically.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "gray.png"
        >>> save_picture(path, np.full((8, 8, 1), 128, np.uint8))
        >>> path.read_bytes()[:4]
        b'\\x89PNG'
    """
    with replacing(path, "wb") as file:
        file.write(png(picture.transpose(2, 0, 1)))
