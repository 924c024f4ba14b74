"""Images of any origin, to be converted: folders, archives, lists, and torchvision's files."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from edm2lite.dataset.captions import Captions, as_captions, caption_of, stated_captions
from edm2lite.dataset.condition_files import (
    image_names,
    paired_files,
    read_normalization,
    read_pairs,
)
from edm2lite.dataset.conditions import Normalization
from edm2lite.dataset.decoding import SUFFIXES, open_image
from edm2lite.dataset.files import LARGEST, Files, open_files
from edm2lite.dataset.labels import Labels, as_labels, stated_labels
from edm2lite.dataset.opening import FUNCTION, is_builtin
from edm2lite.dataset.table import TABLE, read_table
from edm2lite.dataset.torchvision_files import read_torchvision
from edm2lite.kinds import Kinds
from edm2lite.messages import one_line
from edm2lite.strict_json import parse, shown

Load = Callable[[int], Image.Image]

COLLECTIONS: Kinds[Callable[[int | None], ImageCollection]] = Kinds(
    "collection",
    {
        "openmoji": "edm2lite.dataset.openmoji:open_openmoji",
        "digits": "edm2lite.dataset.digits:digits_collection",
    },
)
"""Collections that a function of the resolution returns; one of yours is ``module:function``."""


@dataclass(frozen=True)
class ImageCollection:
    """Images to convert, of any sizes.

    Attributes:
        name: Name of the collection for messages: its path.
        names: Name of every image.
        load: Function from the index of an image to the image; raises ValueError if it is damaged.
        table: Labels, or None.
        gray: Whether all images are known to have one channel.
        conditions: Condition -> function from the index of an image to its condition image.
        normalization: Normalization of a condition, where the collection states it.
        captions: Texts that describe the images, or None.
        license: License of the images, if the collection states it.
    """

    name: str
    names: Sequence[str] = field(repr=False)
    load: Load = field(repr=False)
    table: Labels | None = field(repr=False)
    gray: bool = False
    conditions: Mapping[str, Load] = field(default_factory=dict)
    normalization: Mapping[str, Normalization] = field(default_factory=dict)
    captions: Captions | None = field(repr=False, default=None)
    license: str | None = None


def open_collection(
    source: str | Path,
    split: str = "train",
    *,
    labeled: bool = True,
    conditions: bool = True,
    captions: bool = True,
    resolution: int | None = None,
) -> ImageCollection:
    """The images of a folder, ZIP, CSV, JSONL, of CIFAR-10's or MNIST's own files, or OpenMoji's.

    Args:
        source: Folder or file of the images; ``"openmoji"``, ``"digits"``, or ``module:function``
            for a function from the resolution to an :class:`ImageCollection`. A folder of that name
            is preferred to a function, and makes ``"openmoji"`` ambiguous.
        split: ``"train"`` or ``"test"`` of CIFAR-10 and MNIST.
        labeled: Whether classes are taken over.
        conditions: Whether condition images are taken over.
        captions: Whether captions are taken over.
        resolution: Side in pixels of what is drawn for the occasion; others keep their size.

    Raises:
        FileNotFoundError: If there is nothing at ``source``.
        ValueError: If the name is ambiguous, there are no images, or only some of them have labels
            or condition images.
        ImportError: If OpenMoji is wanted without the packages of the extra ``emoji``.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cat", "dog"):
        ...         Path(folder, name).mkdir()
        ...         Image.new("RGB", (40, 30)).save(Path(folder, name, "1.png"))
        ...     collection = open_collection(folder)
        >>> collection.names, collection.table.classes
        (['cat/1.png', 'dog/1.png'], ('cat', 'dog'))
    """
    name, path = str(source), Path(source)
    if is_builtin(source, among=COLLECTIONS) or (FUNCTION.fullmatch(name) and not path.exists()):
        found = COLLECTIONS.find(name)(resolution)
        if not isinstance(found, ImageCollection):
            raise ValueError(
                f"collection {name} must return an ImageCollection, got {type(found).__name__}"
            )
        left_out: dict[str, Any] = {} if captions else {"captions": None}
        left_out |= {} if labeled else {"table": None}
        return dataclasses.replace(found, **left_out)
    if path.suffix.lower() in (".csv", ".jsonl"):
        listed = _from_list(path, conditions, captions)
        return listed if labeled else dataclasses.replace(listed, table=None)
    known = read_torchvision(path, split)
    if known is not None:
        images, labels, gray = known
        names = [f"{split} {i}" for i in range(len(images))]
        table = as_labels(labels.tolist(), str(path)) if labeled else None
        return ImageCollection(str(path), names, lambda i: Image.fromarray(images[i]), table, gray)
    return _from_files(open_files(path), labeled, conditions, captions)


def with_condition_folder(collection: ImageCollection, folder: Path) -> ImageCollection:
    """The images with a condition image each, the file of the same path and name in a folder.

    Args:
        collection: Images.
        folder: Folder or ZIP of condition images; the endings of the names may differ.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If an image has no condition image, or two.
    """
    files = open_files(folder)
    found: dict[str, str] = {}
    for file in files.names:
        if file.lower().endswith(SUFFIXES) and found.setdefault(_stem(file), file) != file:
            raise ValueError(
                f"{folder} must have one condition image of a name, it has {found[_stem(file)]} and"
                f" {file}"
            )
    missing = [name for name in collection.names if _stem(name) not in found]
    if missing:
        raise ValueError(
            f"{folder} must have a condition image for each of the {len(collection.names)} images"
            f" of {collection.name}, {missing[0]} has none (looked for {_stem(missing[0])}.*)"
        )
    paths = [found[_stem(name)] for name in collection.names]
    loaders = {**collection.conditions, "image": _loader(files, paths)}
    return dataclasses.replace(collection, conditions=loaders)


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _from_files(files: Files, labeled: bool, conditions: bool, captions: bool) -> ImageCollection:
    origin = str(files.path)
    content = read_table(files)
    pairs = read_pairs(content, origin)
    photos = [name for name in files.names if name.lower().endswith(SUFFIXES)]
    names = image_names(photos, pairs, origin)
    if not names:
        raise ValueError(f"{origin} must hold images ({', '.join(SUFFIXES)}), found none")
    paired = paired_files(pairs, names, files) if conditions else {}
    table = None
    if labeled:
        table = stated_labels(content, names, files)
    return ImageCollection(
        origin, names, _loader(files, names), table,
        conditions={name: _loader(files, paths) for name, paths in paired.items()},
        normalization=read_normalization(content, origin) if conditions else {},
        captions=stated_captions(content, names, files) if captions else None,
        license=_license(content, origin),
    )  # fmt: skip


def _loader(files: Files, names: Sequence[str]) -> Load:
    return lambda i: open_image(files.read(names[i]), names[i], str(files.path))


def _license(content: Mapping[str, Any], origin: str) -> str | None:
    stated = content.get("license")
    if stated is not None and not isinstance(stated, str):
        raise ValueError(f"license in {TABLE} of {origin} must be a text, got {shown(stated)}")
    return stated


def _from_list(path: Path, conditions: bool, captions: bool) -> ImageCollection:
    """Rows of ``path`` (relative to the list); ``label``, ``condition`` and ``text`` if given."""
    rows = _rows(path)
    if not rows or any(not isinstance(row, dict) or not row.get("path") for row in rows):
        raise ValueError(
            f"{path} must have a column (or key) path in every row, and may have label,"
            ' condition and text; for example path,label or {"path": "a.jpg", "label": 3}'
        )
    names = [str(row["path"]) for row in rows]
    told = [str(row.get("condition") or "") for row in rows]
    if any(told) and not all(told):
        raise ValueError(
            f"{path} must give a condition image for every image or for none, it has none for"
            f" {one_line(names[told.index('')], 200)}"
        )
    table = _listed_labels([row.get("label") for row in rows], str(path))
    images = {"image": _list_loader(path, told)} if conditions and any(told) else {}
    texts = as_captions([caption_of(row) for row in rows], names, str(path)) if captions else None
    return ImageCollection(
        str(path), names, _list_loader(path, names), table, conditions=images, captions=texts
    )


def _list_loader(path: Path, names: Sequence[str]) -> Load:
    def load(index: int) -> Image.Image:
        file = path.parent / names[index]
        name = one_line(names[index], 200)
        if not file.is_file():
            raise ValueError(f"{name} in {path} does not exist; correct the list")
        if (size := file.stat().st_size) > LARGEST:
            raise ValueError(f"{name} in {path} must have at most {LARGEST} bytes, it has {size}")
        return open_image(file.read_bytes(), name, str(path))

    return load


def _rows(path: Path) -> list[Any]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                return list(csv.DictReader(file))
            return [parse(line) for line in file if line.strip()]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} must be UTF-8 text, one row per line, got {error}") from error


def _listed_labels(values: list[Any], origin: str) -> Labels | None:
    """Whole numbers are indices, other texts names of classes, lists vectors; empty is none."""
    values = [None if value in (None, "") else value for value in values]
    if all(value is None for value in values):
        return None
    if all(value is None or (isinstance(value, str) and value.isdigit()) for value in values):
        values = [None if value is None else int(value) for value in values]
    if any(isinstance(value, str) for value in values):
        classes = sorted({str(value) for value in values if value is not None})
        index = {name: i for i, name in enumerate(classes)}
        rows = [None if value is None else index[str(value)] for value in values]
        return as_labels(rows, origin, classes)
    return as_labels(values, origin)
