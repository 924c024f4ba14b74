"""Images of any origin to a data set of one size, or of the sizes of buckets."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from edm2lite.dataset.buckets import Buckets
from edm2lite.dataset.collection import ImageCollection
from edm2lite.dataset.condition_files import PixelSums
from edm2lite.dataset.conditions import Normalization
from edm2lite.dataset.conversion import COMPUTED, Conversion
from edm2lite.dataset.crop import is_gray, kept_area
from edm2lite.dataset.files import writing
from edm2lite.dataset.table import TABLE, table_text
from edm2lite.threads import map_in_threads


@dataclass(frozen=True)
class _Converted:
    """One image: its pixels and condition images, or the reason why there are none."""

    image: Image.Image | None
    conditions: Mapping[str, Image.Image] = field(default_factory=dict)
    before: tuple[int, int] = (1, 1)
    damage: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        assert self.image is not None
        return self.image.height, self.image.width

    def copies(self, mirror: bool) -> list[_Converted]:
        """The image and, if asked for, its mirror image; nothing if there is no image."""
        if self.image is None:
            return []
        if not mirror:
            return [self]
        conditions = {name: ImageOps.mirror(image) for name, image in self.conditions.items()}
        image = ImageOps.mirror(self.image)
        return [self, dataclasses.replace(self, image=image, conditions=conditions)]


@dataclass
class ConversionReport:
    """Outcome of a conversion.

    Attributes:
        sizes: (height, width) of every image written, mirror images included.
        kept: Share of its area that cropping left of each image used.
        enlarged: Number of images that were smaller than what they became.
        misfits: Names of images that fit no bucket.
        damaged: Reason why each damaged image was left out.
        normalization: Normalization of each condition, as stored.
    """

    sizes: list[tuple[int, int]] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    enlarged: int = 0
    misfits: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    normalization: dict[str, Normalization] = field(default_factory=dict)

    def count(self, name: str, done: _Converted) -> None:
        """Add the outcome of one image."""
        if done.damage is not None:
            self.damaged.append(done.damage)
        elif done.image is None:
            self.misfits.append(name)
        else:
            self.enlarged += done.before[0] < done.size[0] or done.before[1] < done.size[1]
            self.kept.append(kept_area(done.before, done.size))


def convert_images(
    collection: ImageCollection,
    dest: Path,
    conversion: Conversion,
    num_threads: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ConversionReport:
    """Write a ZIP (if ``dest`` ends so) or a folder of uncompressed PNGs with ``dataset.json``.

    Nothing bears the name ``dest`` before it is complete.

    Args:
        collection: Images to convert.
        dest: Path of the new data set.
        conversion: Settings.
        num_threads: Number of threads that decode and resample.
        progress: Function that is called with the number of images done, and of all.

    Raises:
        ValueError: If ``dest`` exists, another process writes it, an image is damaged, or none is
            left.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from edm2lite.dataset.collection import open_collection
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     (folder / "photos").mkdir()
        ...     Image.new("RGB", (40, 30)).save(folder / "photos" / "1.png")
        ...     report = convert_images(
        ...         open_collection(folder / "photos"), folder / "a.zip", Conversion(resolution=8)
        ...     )
        >>> report.sizes, report.kept
        ([(8, 8)], [0.75])
    """
    report = ConversionReport()
    computed = () if conversion.hint is None else (COMPUTED,)
    if twice := {*computed} & {*collection.conditions}:
        raise ValueError(
            f"{collection.name} must have no condition images of the name {twice.pop()} where some"
            " are computed; leave them out by --no-conditions"
        )
    names = (*collection.conditions, *computed)
    sums = {name: PixelSums(name, collection.name) for name in names}
    with writing(dest) as add:
        rows: list[int] = []
        for index, done in enumerate(_outcomes(collection, conversion, num_threads)):
            report.count(collection.names[index], done)
            for copy in done.copies(conversion.mirror):
                _add_images(add, len(rows), copy, sums)
                rows.append(index)
                report.sizes.append(copy.size)
            progress(index + 1, len(collection.names))
        if not rows:
            raise ValueError(f"{collection.name} must hold images that can be used, none was left")
        stated = {**collection.normalization, **conversion.normalization}
        report.normalization = {n: stated.get(n) or s.normalization() for n, s in sums.items()}
        add(TABLE, _table(collection, rows, report).encode())
    return report


def _outcomes(
    collection: ImageCollection, conversion: Conversion, num_threads: int
) -> Iterator[_Converted]:
    """The outcome of every image, in order."""
    buckets = conversion.buckets()

    def one(index: int) -> _Converted:
        try:
            return _convert_one(collection, index, conversion, buckets)
        except ValueError as error:
            if not conversion.skip_damaged:
                raise
            return _Converted(None, damage=str(error))

    return map_in_threads(one, range(len(collection.names)), num_threads)


def _convert_one(
    collection: ImageCollection, index: int, conversion: Conversion, buckets: Buckets | None
) -> _Converted:
    try:
        image = conversion.upright(collection.load(index), conversion.gray or collection.gray)
        conditions = _load_conditions(collection, index, image.size, conversion)
    except (ValueError, OSError) as error:
        if collection.names[index] in str(error):
            raise
        raise ValueError(
            f"{collection.names[index]} in {collection.name} is not usable: {error}"
        ) from error
    before = image.height, image.width
    resize = conversion.resizing(before, buckets)
    if resize is None:
        return _Converted(None, before=before)
    resized = {name: resize(condition) for name, condition in conditions.items()}
    final = resize(image)
    return _Converted(final, {**resized, **conversion.hints(final)}, before)


def _load_conditions(
    collection: ImageCollection, index: int, size: tuple[int, int], conversion: Conversion
) -> dict[str, Image.Image]:
    found = {}
    for name, load in collection.conditions.items():
        image = load(index)
        found[name] = conversion.upright(image, is_gray(image))
        if found[name].size != size:
            (width, height), (found_width, found_height) = size, found[name].size
            raise ValueError(
                f"its condition image ({name}) must be of its size, {height} x {width}, got"
                f" {found_height} x {found_width}; resize one of them"
            )
    return found


def _add_images(
    add: Callable[[str, bytes], None], number: int, copy: _Converted, sums: dict[str, PixelSums]
) -> None:
    assert copy.image is not None
    add(_name(number), _png(copy.image))
    for condition, image in copy.conditions.items():
        add(_condition_name(condition, number), _png(image))
        sums[condition].add(np.asarray(image))


def _table(collection: ImageCollection, rows: list[int], report: ConversionReport) -> str:
    labels = collection.table and collection.table.rows(np.array(rows))
    mixed = report.sizes if len(set(report.sizes)) > 1 else []
    numbers = range(len(rows))
    conditions = {
        name: [_condition_name(name, i) for i in numbers] for name in report.normalization
    }
    normalization = {name: dataclasses.asdict(n) for name, n in report.normalization.items()}
    captions = collection.captions.rows(rows).texts if collection.captions else ()
    return table_text(
        [_name(i) for i in numbers], labels, mixed, conditions, normalization,
        captions, collection.license,
    )  # fmt: skip


def _name(index: int) -> str:
    return f"{index // 1000:05d}/img{index:08d}.png"


def _condition_name(condition: str, index: int) -> str:
    return f"conditions/{condition}/{_name(index)}"


def _png(image: Image.Image) -> bytes:
    """Uncompressed, so that reading it back costs as little as possible."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=0)
    return buffer.getvalue()
