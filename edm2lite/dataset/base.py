"""ImageDataset: random access to what is stored, the same for every way of storing it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edm2lite.dataset.captions import Captions
from edm2lite.dataset.conditions import DatasetCondition
from edm2lite.dataset.labels import Labels
from edm2lite.models.encoders import LatentEncoder
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.conditions import ClassLabel, Condition


@dataclass(frozen=True)
class ImageDataset:
    """Random access to images, stored as pixels or as latents, and to what is known about them.

    Attributes:
        name: Name for messages: the path of a stored data set.
        num_images: Number of images.
        image_shape: (C, H, W) of the first image as a network sees it.
        read: Function from the index of an image to what is stored of it: pixels, uint8 [C, H, W];
            or latents, float32 [2C, H, W], C channels of means and then C of standard deviations.
            It depends on the index alone, and may be called from several threads at once.
        table: Labels and the names of classes, or None.
        sizes: [num_images, 2] heights and widths, or None if all images are of one size.
        names: Name of every image for messages; empty if they have none.
        encoder: Description of the latents; None for pixels.
        extra_conditions: What a network can be told besides the label.
        captions: Texts that describe the images, or None. They are no condition until a text
            encoder makes numbers of them.

    Raises:
        ValueError: If two conditions have the same name, or captions are of another number of
            images.

    Example:
        >>> import numpy as np
        >>> from edm2lite.dataset import ImageDataset
        >>> gray = np.arange(0, 250, 50, dtype=np.uint8)
        >>> dataset = ImageDataset("grays", 5, (1, 8, 8), lambda i: np.full((1, 8, 8), gray[i]))
        >>> dataset.images([1, 4])[:, 0, 0, 0].tolist()
        [50, 200]
    """

    name: str
    num_images: int
    image_shape: tuple[int, int, int]
    read: Callable[[int], NDArray[Any]] = field(repr=False)
    table: Labels | None = field(repr=False, default=None)
    sizes: NDArray[np.int64] | None = field(repr=False, default=None)
    names: Sequence[str] = field(repr=False, default=())
    encoder: LatentEncoder | None = None
    extra_conditions: tuple[DatasetCondition, ...] = ()
    captions: Captions | None = field(repr=False, default=None)

    def __post_init__(self) -> None:
        names = [condition.name for condition in self.conditions]
        if len(set(names)) < len(names):
            raise ValueError(
                f"conditions of {self.name} must have different names, got {', '.join(names)}"
            )
        if self.captions is not None and len(self.captions) != self.num_images:
            raise ValueError(
                f"{self.name} must have captions for each of its {self.num_images} images (an empty"
                f" tuple for none), got {len(self.captions)}"
            )

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
    def class_names(self) -> tuple[str, ...]:
        """Name of each class, "" for one without a name; empty if the data set has no names."""
        return () if self.table is None else self.table.classes

    @property
    def dataset_conditions(self) -> tuple[DatasetCondition, ...]:
        """Everything that a network can be told, with its values; the label comes first."""
        if self.table is None:
            return self.extra_conditions
        label = DatasetCondition(ClassLabel(self.label_dim), self.table.values)
        return (label, *self.extra_conditions)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What a network can be told about the images, as a network declares it."""
        return tuple(known.condition for known in self.dataset_conditions)

    def with_condition(
        self,
        condition: Condition,
        values: NDArray[Any] | Callable[..., ArrayLike],
        *,
        is_random: bool = False,
    ) -> ImageDataset:
        """The same images, about which a network can be told one thing more.

        Args:
            condition: Kind and shape of the values.
            values: Array [N, ...] with a row per image, or a function from the index of an image to
                its value; see :class:`edm2lite.dataset.conditions.DatasetCondition`.
            is_random: Whether values depend on a draw too, as the second argument of the function.

        Raises:
            ValueError: If the data set has a condition of that name, or the number of values is not
                the number of images.

        Example:
            >>> from edm2lite.dataset import open_dataset
            >>> from edm2lite.network.conditions import Vector
            >>> digits = open_dataset("digits")
            >>> ink = digits.images(range(len(digits))).mean(axis=(2, 3)) / 255
            >>> told = digits.with_condition(Vector("ink", 1), ink)
            >>> told.conditioning([0, 1, 2])
            Conditioning(label: [3], ink: [3, 1])
        """
        if isinstance(values, np.ndarray) and len(values) != len(self):
            raise ValueError(
                f"{condition.name} must have a value for each of the {len(self)} images of"
                f" {self.name}, got {len(values)}"
            )
        added = DatasetCondition(condition, values, is_random=is_random)
        return dataclasses.replace(self, extra_conditions=(*self.extra_conditions, added))

    def conditioning(
        self,
        indices: Sequence[int] | NDArray[np.int64],
        names: Collection[str] | None = None,
        draws: Sequence[float] | NDArray[np.float64] | None = None,
    ) -> Conditioning:
        """What a network is told about some of the images, in memory of its own.

        Writing into it (label dropout, mirroring) leaves the data set as it is.

        Args:
            indices: Indices of images of one size.
            names: Names of the conditions that are read; all of them by default.
            draws: Number in [0, 1) for each image, which chooses one of several values, such as one
                of its captions, for all conditions alike. [default: the first value]

        Raises:
            ValueError: If a stored value is damaged, or does not fit its condition.
        """
        return Conditioning(
            {
                known.name: known.rows(indices, draws)
                for known in self.dataset_conditions
                if names is None or known.name in names
            }
        )

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """Shape of what :attr:`read` returns for the first image."""
        channels, height, width = self.image_shape
        return (channels if self.encoder is None else 2 * channels), height, width

    def all_sizes(self) -> NDArray[np.int64]:
        """[N, 2] height and width of every image."""
        if self.sizes is not None:
            return self.sizes
        return np.tile(np.array(self.image_shape[1:], np.int64), (len(self), 1))

    def title(self, index: int) -> str:
        """Name of an image for messages: ``"00000/img00000003.png"``, or ``"image 3"``."""
        return self.names[index] if len(self.names) else f"image {index}"

    def images(self, indices: Sequence[int]) -> NDArray[Any]:
        """What is stored of several images of one size, [N, ...].

        Raises:
            ValueError: If a file is damaged, or the images differ in size.
        """
        images = [self.read(int(i)) for i in indices]
        if len({image.shape for image in images}) > 1:
            raise ValueError(
                f"{self.name} has images of several sizes, which cannot be used together here;"
                " bring them to one size by edm2lite dataset convert"
            )
        return np.stack(images)
