"""ImageDataset: random access to what is stored, the same for every way of storing it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edm2lite.dataset.labels import Labels
from edm2lite.models.encoders import LatentEncoder
from edm2lite.network.conditioning import ClassLabel, Condition, Conditioning


@dataclass(frozen=True)
class ImageDataset:
    """Random access to images, stored as pixels or as latents.

    Attributes:
        name: Where it came from.
        num_images: How many there are.
        image_shape: (C, H, W) as a network sees the first image.
        read: What is stored of one index: pixels, uint8 [C, H, W]; or latents, float32
            [2C, H, W], C channels of means and then C of standard deviations.
        table: Labels and the names of classes, or None.
        sizes: [num_images, 2] heights and widths, or None if all are to be of one size.
        names: Name of every image, for people.
        encoder: Of latents, what they are; None for pixels.
    """

    name: str
    num_images: int
    image_shape: tuple[int, int, int]
    read: Callable[[int], NDArray[Any]] = field(repr=False)
    table: Labels | None = field(repr=False, default=None)
    sizes: NDArray[np.int64] | None = field(repr=False, default=None)
    names: Sequence[str] = field(repr=False, default=())
    encoder: LatentEncoder | None = None

    def __len__(self) -> int:
        return self.num_images

    @property
    def labels(self) -> NDArray[Any] | None:
        """[N] int64 class indices (-1: none), or [N, L] float32 vectors; None without labels."""
        return None if self.table is None else self.table.values

    @property
    def label_dim(self) -> int:
        """Number of classes, or length of the label vectors; 0 without labels."""
        return 0 if self.table is None else self.table.label_dim

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What a network can be told about the images."""
        return (ClassLabel(self.label_dim),) if self.label_dim else ()

    def conditioning(self, indices: Sequence[int] | NDArray[np.int64]) -> Conditioning:
        """Everything that a network can be told about some of the images."""
        if self.labels is None:
            return Conditioning()
        return Conditioning({"label": torch.from_numpy(self.labels[np.asarray(indices)])})

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """Shape of what :attr:`read` gives for the first image."""
        channels, height, width = self.image_shape
        return (channels if self.encoder is None else 2 * channels), height, width

    def all_sizes(self) -> NDArray[np.int64]:
        """[N, 2] height and width of every image."""
        if self.sizes is not None:
            return self.sizes
        return np.tile(np.array(self.image_shape[1:], np.int64), (len(self), 1))

    def images(self, indices: Sequence[int]) -> NDArray[Any]:
        """What is stored of several images of one size, [N, ...].

        Raises:
            ValueError: A file is damaged, or the images differ in size.
        """
        images = [self.read(int(i)) for i in indices]
        if len({image.shape for image in images}) > 1:
            raise ValueError(
                f"{self.name} has images of several sizes, which cannot be used together here;"
                " bring them to one size by edm2lite dataset convert"
            )
        return np.stack(images)
