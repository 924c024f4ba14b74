"""What a data set holds, in figures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edm2lite.dataset.base import ImageDataset
from edm2lite.models.encoders import Encoder, LatentEncoder
from edm2lite.seeding import Purpose, normals, rng


@dataclass(frozen=True)
class ValueStatistics:
    """Attributes:
    count: Images measured.
    mean, std: [C] of their values as the network sees them.
    total_mean, total_std: Over all channels.
    """

    count: int
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    total_mean: float
    total_std: float


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

    Raises:
        ValueError: An image is damaged.
    """
    order = rng(seed, 0, Purpose.ORDER).permutation(len(dataset))[:count]
    channels = dataset.image_shape[0]
    sums = torch.zeros(2, channels, dtype=torch.float64)
    num_pixels = 0
    for row in order:
        raw = torch.from_numpy(dataset.images([int(row)]))
        if isinstance(encoder, LatentEncoder):
            shape = (channels, *raw.shape[2:])
            x = encoder.encode(raw, normals([rng(seed, int(row), Purpose.LATENT)], shape))
        else:
            x = encoder.encode(raw)
        flat = x.double().transpose(0, 1).flatten(1)
        sums += torch.stack([flat.sum(1), flat.square().sum(1)])
        num_pixels += flat.shape[1]
    mean, square = (sums / num_pixels).numpy()
    total, total_square = mean.mean(), square.mean()
    std = np.sqrt(np.maximum(square - mean**2, 0))
    total_std = float(np.sqrt(max(total_square - total**2, 0.0)))
    return ValueStatistics(len(order), mean, std, float(total), total_std)
