"""Images of any origin, to be converted: folders, archives, lists, and torchvision's files."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from edm2lite.dataset.captions import Captions, as_captions, caption_of, stated_captions
from edm2lite.dataset.condition_files import (
    Normalization,
    image_names,
    paired_files,
    read_normalization,
    read_pairs,
)
from edm2lite.dataset.decoding import SUFFIXES, open_image
from edm2lite.dataset.files import LARGEST, Files, open_files
from edm2lite.dataset.labels import Labels, as_labels, stated_labels
from edm2lite.dataset.table import TABLE, read_table
from edm2lite.dataset.torchvision_files import read_torchvision
from edm2lite.messages import one_line
from edm2lite.strict_json import parse, shown

Load = Callable[[int], Image.Image]


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
    path: str | Path,
    split: str = "train",
    *,
    labeled: bool = True,
    conditions: bool = True,
    captions: bool = True,
) -> ImageCollection:
    """The images of a folder, ZIP, CSV, JSONL, or of CIFAR-10's or MNIST's own files.

    Args:
        path: Folder or file of the images.
        split: ``"train"`` or ``"test"`` of CIFAR-10 and MNIST.
        labeled: Whether folders and ``dataset.json`` tell the class of an image.
        conditions: Whether condition images are taken over.
        captions: Whether captions are taken over.

    Raises:
        FileNotFoundError: If there is nothing at ``path``.
        ValueError: If there are no images, or only some of them have labels or condition images.

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
    path = Path(path)
    if path.suffix.lower() in (".csv", ".jsonl"):
        return _from_list(path, conditions, captions)
    known = read_torchvision(path, split)
    if known is not None:
        images, labels, gray = known
        names = [f"{split} {i}" for i in range(len(images))]
        table = as_labels(labels.tolist(), str(path))
        return ImageCollection(str(path), names, lambda i: Image.fromarray(images[i]), table, gray)
    return _from_files(open_files(path), labeled, conditions, captions)


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
