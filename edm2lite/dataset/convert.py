"""Any images to a data set of one size, or of the sizes of buckets."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from edm2lite.dataset.buckets import MAX_ERROR, Buckets
from edm2lite.dataset.collection import ImageCollection
from edm2lite.dataset.crop import Transform, cover, kept_area, shorter_side, upright
from edm2lite.dataset.files import writing
from edm2lite.dataset.labels import table_text
from edm2lite.threads import map_in_threads


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """How images are converted.

    Attributes:
        resolution: Side of the square, or R of the buckets; None leaves the size.
        crop: ``center`` cuts squares; ``buckets`` the nearest bucket; ``none`` nothing, the shorter
            side becomes ``resolution``.
        transform: How to resample.
        mirror: Whether each image is followed by its mirror image.
        gray: Whether one channel is stored.
        bucket_step: Sides of buckets are multiples of it; None for an eighth of ``resolution``.
        max_error: In |ln aspect ratio|, beyond which an image fits no bucket.
        skip_damaged: Leave out images that cannot be read, instead of stopping at the first.
    """

    resolution: int | None = None
    crop: Literal["center", "none", "buckets"] = "center"
    transform: Transform = "lanczos"
    mirror: bool = False
    gray: bool = False
    bucket_step: int | None = None
    max_error: float = MAX_ERROR
    skip_damaged: bool = False

    def __post_init__(self) -> None:
        if self.resolution is None and self.crop == "buckets":
            raise ValueError("buckets need a resolution, for example --resolution 512")
        if self.resolution is not None and self.resolution < 1:
            raise ValueError(f"resolution must be at least 1, got {self.resolution}")


@dataclass(frozen=True)
class _Converted:
    """One image: its pixels, or why there are none."""

    image: Image.Image | None
    before: tuple[int, int] = (1, 1)
    damage: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        assert self.image is not None
        return self.image.height, self.image.width


@dataclass
class ConversionReport:
    """What became of the images.

    Attributes:
        sizes: (height, width) of every image written, mirror images included.
        kept: Share of its area that cropping left of each image used.
        enlarged: How many were smaller than what they became.
        misfits: Names of images that fit no bucket.
        damaged: Why each damaged image was left out.
    """

    sizes: list[tuple[int, int]] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    enlarged: int = 0
    misfits: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    def count(self, name: str, done: _Converted) -> None:
        """Take in what became of one image."""
        if done.damage is not None:
            self.damaged.append(done.damage)
        elif done.image is None:
            self.misfits.append(name)
        else:
            self.enlarged += done.before[0] < done.size[0] or done.before[1] < done.size[1]
            self.kept.append(kept_area(done.before, done.size))


def convert_images(
    source: ImageCollection,
    dest: Path,
    conversion: Conversion,
    num_threads: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ConversionReport:
    """Write a ZIP (if ``dest`` ends so) or a folder of uncompressed PNGs with ``dataset.json``.

    Nothing bears the name ``dest`` before it is complete.

    Raises:
        ValueError: ``dest`` exists, an image is damaged, sizes differ, or nothing is left.
    """
    if dest.exists():
        raise ValueError(f"{dest} exists; remove it, or give another name")
    buckets = None
    if conversion.crop == "buckets":
        assert conversion.resolution is not None
        buckets = Buckets.of(conversion.resolution, conversion.bucket_step)

    def one(index: int) -> _Converted:
        try:
            return _convert_one(source, index, conversion, buckets)
        except ValueError as error:
            if not conversion.skip_damaged:
                raise
            return _Converted(None, damage=str(error))

    report = ConversionReport()
    rows: list[int] = []
    with writing(dest) as add:
        for index, done in enumerate(map_in_threads(one, range(len(source.names)), num_threads)):
            report.count(source.names[index], done)
            for image in _copies(done, conversion.mirror):
                add(_name(len(rows)), _png(image))
                rows.append(index)
                report.sizes.append(done.size)
            progress(index + 1, len(source.names))
        if not rows:
            raise ValueError(f"{source.name} must hold images that can be used, none was left")
        table = source.table and source.table.rows(np.array(rows))
        mixed = report.sizes if len(set(report.sizes)) > 1 else []
        text = table_text([_name(i) for i in range(len(rows))], table, mixed)
        add("dataset.json", text.encode())
    return report


def _convert_one(
    source: ImageCollection, index: int, conversion: Conversion, buckets: Buckets | None
) -> _Converted:
    try:
        image = upright(source.load(index), conversion.gray or source.gray)
    except (ValueError, OSError) as error:
        if source.names[index] in str(error):
            raise
        raise ValueError(
            f"{source.names[index]} in {source.name} is not usable: {error}"
        ) from error
    before = image.height, image.width
    if buckets is not None:
        nearest, errors = buckets.assign(np.array([before]))
        if errors[0] > conversion.max_error:
            return _Converted(None, before)
        height, width = map(int, buckets.sizes[nearest[0]])
        return _Converted(cover(image, height, width, conversion.transform), before)
    side = conversion.resolution
    if conversion.crop == "none":
        image = image if side is None else shorter_side(image, side, conversion.transform)
    else:
        side = min(before) if side is None else side
        image = cover(image, side, side, conversion.transform)
    return _Converted(image, before)


def _copies(done: _Converted, mirror: bool) -> list[Image.Image]:
    if done.image is None:
        return []
    return [done.image, ImageOps.mirror(done.image)] if mirror else [done.image]


def _name(index: int) -> str:
    return f"{index // 1000:05d}/img{index:08d}.png"


def _png(image: Image.Image) -> bytes:
    """Uncompressed, so that reading it back costs as little as possible."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=0)
    return buffer.getvalue()
