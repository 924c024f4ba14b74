"""Settings of a conversion: what becomes of an image of any size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image

from edm2lite.dataset.buckets import MAX_ERROR, Buckets
from edm2lite.dataset.conditions import Normalization
from edm2lite.dataset.crop import Transform, cover, shorter_side
from edm2lite.dataset.decoding import Exif, check_background, upright
from edm2lite.dataset.hints import find_hint

COMPUTED = "image"
"""Name of the condition that is computed: the one that a network with ``cond_channels`` takes."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """Settings of a conversion. Condition images are treated as their images are.

    Attributes:
        resolution: Side of the square, or R of the buckets; None keeps the size.
        crop: ``"center"`` cuts out a square, ``"buckets"`` the nearest bucket; ``"none"`` cuts
            nothing off, and ``resolution`` is the length of the shorter side.
        transform: Method of resampling, see :func:`edm2lite.dataset.crop.cover`.
        mirror: Whether each image is followed by its mirror image.
        gray: Whether one channel is stored. Condition images keep their channels.
        bucket_step: Number that the sides of buckets are multiples of; None for an eighth of
            ``resolution``.
        max_error: Largest |ln(aspect ratio / bucket's aspect ratio)| of an image that fits.
        exif: Whether images are turned as their EXIF says, or stay as they are stored.
        background: Color behind transparent parts; None leaves out the transparency, so that the
            colors that are stored there show. EDM's and EDM2's converters ignore EXIF and leave out
            transparency.
        skip_damaged: Whether images that cannot be read are left out; otherwise the first one ends
            the conversion.
        normalization: Normalization of conditions, to be that of another data set; what neither it
            nor the collection states is measured.
        hint: What is stored beside each image as its condition image, computed from its final
            pixels: a name of :func:`edm2lite.dataset.hints.find_hint`; None for nothing.

    Raises:
        ValueError: If buckets have no resolution, the resolution is not positive, the background
            is no color, or there is no such hint.

    Example:
        >>> Conversion(resolution=512, crop="buckets").bucket_step is None  # an eighth of 512
        True
    """

    resolution: int | None = None
    crop: Literal["center", "none", "buckets"] = "center"
    transform: Transform = "lanczos"
    mirror: bool = False
    gray: bool = False
    bucket_step: int | None = None
    max_error: float = MAX_ERROR
    exif: Exif = "turn"
    background: str | None = "white"
    skip_damaged: bool = False
    normalization: Mapping[str, Normalization] = field(default_factory=dict)
    hint: str | None = None

    def __post_init__(self) -> None:
        if self.resolution is None and self.crop == "buckets":
            raise ValueError("buckets need a resolution, for example --resolution 512")
        if self.resolution is not None and self.resolution < 1:
            raise ValueError(f"resolution must be at least 1, got {self.resolution}")
        check_background(self.background)
        if self.hint is not None:
            find_hint(self.hint)

    def hints(self, image: Image.Image) -> dict[str, Image.Image]:
        """Condition images that are computed from an image, by the name of the condition.

        Args:
            image: Image as it is stored, in mode L or RGB.

        Raises:
            ValueError: If a hint of yours returns something else than uint8 pixels of that size.
        """
        if self.hint is None:
            return {}
        found = np.asarray(find_hint(self.hint)(np.asarray(image)))
        if found.dtype != np.uint8 or found.shape[:2] != (image.height, image.width):
            raise ValueError(
                f"condition {self.hint} must return uint8 [{image.height}, {image.width}] or"
                f" [{image.height}, {image.width}, 3], got {list(found.shape)} {found.dtype}"
            )
        return {COMPUTED: Image.fromarray(found)}

    def upright(self, image: Image.Image, gray: bool) -> Image.Image:
        """An image before it is resampled, in mode L or RGB."""
        return upright(image, gray, self.exif, self.background)

    def buckets(self) -> Buckets | None:
        """The sizes that images are brought to; None if there is one, or each keeps its own.

        Raises:
            ValueError: If half the resolution is not a multiple of the step.
        """
        if self.crop != "buckets":
            return None
        assert self.resolution is not None
        return Buckets.of(self.resolution, self.bucket_step)

    def resizing(
        self, before: tuple[int, int], buckets: Buckets | None
    ) -> Callable[[Image.Image], Image.Image] | None:
        """What brings images of a size to that of the data set; None if they fit no bucket.

        Args:
            before: Height and width of the images.
            buckets: Sizes to choose from, from :meth:`buckets`.
        """
        side, transform = self.resolution, self.transform
        if buckets is not None:
            nearest, errors = buckets.assign(np.array([before]))
            if errors[0] > self.max_error:
                return None
            height, width = map(int, buckets.sizes[nearest[0]])
            return lambda image: cover(image, height, width, transform)
        if self.crop == "none":
            return lambda image: image if side is None else shorter_side(image, side, transform)
        square = min(before) if side is None else side
        return lambda image: cover(image, square, square, transform)
