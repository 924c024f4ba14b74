"""The contents of a data set in numbers: sizes, classes, and the statistics of its values."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edm2lite.dataset.base import ImageDataset
from edm2lite.dataset.conditions import DatasetCondition
from edm2lite.models.encoders import Encoder, LatentEncoder, PixelEncoder
from edm2lite.seeding import Purpose, normals, rng


@dataclass(frozen=True)
class ValueStatistics:
    """Mean and standard deviation of values as a network sees them.

    Attributes:
        count: Number of images measured.
        mean: [C] mean of each channel.
        std: [C] standard deviation of each channel.
        total_mean: Mean over all channels.
        total_std: Standard deviation over all channels.
    """

    count: int
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    total_mean: float
    total_std: float


@dataclass(frozen=True)
class DatasetSummary:
    """The contents of a data set in numbers.

    Attributes:
        num_images: Number of images.
        sizes: (height, width, number of images) of each size, the most frequent first.
        class_counts: [classes] number of images of each; None without class labels.
        values: Statistics of the images as a network sees them: pixels as -1..1, latents
            standardized if the data set knows how, otherwise as they are.
        conditions: Description of each further condition, and the statistics of its values;
            None for values that are not floating-point numbers.
    """

    num_images: int
    sizes: list[tuple[int, int, int]]
    class_counts: NDArray[np.int64] | None
    values: ValueStatistics
    conditions: list[tuple[str, ValueStatistics | None]]

    @property
    def standardizing(self) -> tuple[float, float]:
        """``shift`` and ``scale`` of the pixel encoder under which mean is 0 and std 0.5."""
        return 127.5 * (1 + self.values.total_mean), 2 * 127.5 * self.values.total_std


def summarize(dataset: ImageDataset, sample: int = 1000, seed: int = 0) -> DatasetSummary:
    """The contents of a data set in numbers.

    Args:
        dataset: Data set.
        sample: Number of images that are read to measure their values.
        seed: Seed of the choice of these images.

    Raises:
        ValueError: If an image or a condition is damaged.

    Example:
        >>> from edm2lite.dataset import open_dataset
        >>> found = summarize(open_dataset("digits"), sample=200)
        >>> found.num_images, found.sizes, found.class_counts.tolist()[:3]
        (1797, [(8, 8, 1797)], [178, 182, 177])
        >>> [round(value) for value in found.standardizing]
        [78, 192]
    """
    rows = _sample(dataset, sample, seed)
    return DatasetSummary(
        len(dataset),
        size_counts(dataset),
        class_counts(dataset),
        measure(dataset, _known_encoder(dataset), sample, seed),
        [
            (known.condition.describe(), _condition_statistics(known, rows))
            for known in dataset.extra_conditions
        ],
    )


def size_counts(dataset: ImageDataset) -> list[tuple[int, int, int]]:
    """(height, width, number of images) of each size, the most frequent first."""
    sizes, counts = np.unique(dataset.all_sizes(), axis=0, return_counts=True)
    rows = [(int(h), int(w), int(n)) for (h, w), n in zip(sizes, counts, strict=True)]
    return sorted(rows, key=lambda row: (-row[2], row))


def class_counts(dataset: ImageDataset) -> NDArray[np.int64] | None:
    """[classes] number of images of each; None without class labels."""
    labels = dataset.labels
    if labels is None or labels.ndim != 1:
        return None
    return np.bincount(labels[labels >= 0], minlength=dataset.label_dim)


def measure(dataset: ImageDataset, encoder: Encoder, count: int, seed: int = 0) -> ValueStatistics:
    """Mean and standard deviation of encoded images, over a random sample without repetition.

    Args:
        dataset: Data set.
        encoder: Way from what is stored to what a network sees.
        count: Number of images, or more to take all.
        seed: Seed of the choice of images, and of the draws from their latent distributions.

    Raises:
        ValueError: If an image is damaged.
    """

    def encoded(row: int) -> Tensor:
        raw = torch.from_numpy(dataset.images([row]))
        if not encoder.is_random:
            return encoder.encode(raw)
        shape = (dataset.image_shape[0], *raw.shape[2:])
        return encoder.encode(raw, normals([rng(seed, row, Purpose.LATENT)], shape))

    return _statistics(encoded(row) for row in _sample(dataset, count, seed))


def _sample(dataset: ImageDataset, count: int, seed: int) -> list[int]:
    return [int(i) for i in rng(seed, 0, Purpose.ORDER).permutation(len(dataset))[:count]]


def _known_encoder(dataset: ImageDataset) -> Encoder:
    """That of the data set; one that leaves latents as they are if it does not know its own."""
    encoder = dataset.encoder
    if encoder is None:
        return PixelEncoder()
    if encoder.mean:
        return encoder
    channels = dataset.image_shape[0]
    return LatentEncoder(mean=(0.0,) * channels, std=(encoder.sigma_data,) * channels)


def _condition_statistics(known: DatasetCondition, rows: list[int]) -> ValueStatistics | None:
    values = (known.rows([row]) for row in rows)
    first = known.rows(rows[:1])
    return _statistics(values) if first.is_floating_point() and first.ndim > 1 else None


def _statistics(values: Iterable[Tensor]) -> ValueStatistics:
    """Of tensors [1, C, ...] that are read one after the other."""
    sums, num_pixels, count = torch.zeros(()), 0, 0
    for x in values:
        flat = x.double().transpose(0, 1).flatten(1)
        sums = sums + torch.stack([flat.sum(1), flat.square().sum(1)])
        num_pixels += flat.shape[1]
        count += 1
    mean, square = (sums / num_pixels).numpy()
    total, total_square = mean.mean(), square.mean()
    std = np.sqrt(np.maximum(square - mean**2, 0))
    total_std = math.sqrt(max(total_square - total**2, 0.0))
    return ValueStatistics(count, mean, std, float(total), total_std)
