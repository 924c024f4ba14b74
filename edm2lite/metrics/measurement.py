"""Rows of numbers, one per image, and the value that a metric makes of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edm2lite.metrics.influence import centered, moments_of
from edm2lite.metrics.moments import Array, RunningMoments


@dataclass(frozen=True)
class ImageRows:
    """The rows that a metric is computed from, one per image.

    Attributes:
        parts: Function that goes over the rows in order, [n, D] float64 at a time.
        num: Number of images.
        num_classes: Number of classes if image i has class i modulo this, else 0. Other seeds then
            have the same share of each class.
        source: Name of the model or of the images, for messages.
        captions: Caption of each image, ``""`` for none; None if the images have no captions.

    Example:
        >>> rows = ImageRows(lambda: iter([np.ones((2, 3)), np.zeros((1, 3))]), num=3)
        >>> rows.array().shape
        (3, 3)
    """

    parts: Callable[[], Iterator[Array]]
    num: int
    num_classes: int = 0
    source: str = "images"
    captions: Sequence[str] | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls, rows: NDArray[Any], num_classes: int = 0, captions: Sequence[str] | None = None
    ) -> ImageRows:
        """Rows [N, D] that are in memory.

        Example:
            >>> ImageRows.of(np.arange(6.0).reshape(3, 2)).moments[0].mean
            array([2., 3.])
        """
        wide = rows.astype(np.float64)
        return cls(lambda: iter([wide]), len(rows), num_classes, captions=captions)

    def array(self) -> NDArray[np.float32]:
        """All rows at once, [N, D] float32."""
        return np.concatenate([part.astype(np.float32) for part in self.parts()])

    def stated_captions(self, metric: str) -> Sequence[str]:
        """Caption of each image.

        Args:
            metric: Name of the metric that needs them, for the message.

        Raises:
            ValueError: If an image has none.
        """
        if self.captions is None or "" in self.captions:
            which = "none has" if self.captions is None else "some have none"
            raise ValueError(
                f"{metric} needs a caption for each image of {self.source}, {which}; give"
                " --conditions, a data set with captions, for a model, or images with captions"
            )
        return self.captions

    @functools.cached_property
    def moments(self) -> tuple[RunningMoments, list[RunningMoments]]:
        """Moments of all rows, and of each quarter of them."""
        return moments_of(self.parts, self.num)


@dataclass(frozen=True)
class Measurement:
    """The value of a metric, and what it is made of.

    Attributes:
        value: The value.
        influences: [J, N], how the value depends on each of N images, see
            :mod:`edm2lite.metrics.influence`; intervals come from it. None if the metric cannot say
            so: it then has no interval, and a sweep cannot tell lengths apart.
        details: Further numbers by name.

    Example:
        >>> Measurement(0.5).influences is None
        True
    """

    value: float
    influences: Array | None = field(default=None, repr=False)
    details: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of_mean(
        cls, each: NDArray[Any], num_classes: int = 0, details: Mapping[str, float] | None = None
    ) -> Measurement:
        """The mean of a number per image.

        Args:
            each: [N], the number of each image.
            num_classes: As in :class:`ImageRows`.
            details: Further numbers.

        Example:
            >>> Measurement.of_mean(np.array([1.0, 2.0, 6.0])).value
            3.0
        """
        influences = None
        if len(each) > 1:
            influences = centered(each[None].astype(np.float64), num_classes)
        return cls(float(each.mean()), influences, details or {})
