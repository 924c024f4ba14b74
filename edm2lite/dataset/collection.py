"""What images can be converted from: folders, archives, lists, and torchvision's files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from edm2lite.dataset.files import Files, open_files
from edm2lite.dataset.images import SUFFIXES
from edm2lite.dataset.labels import Labels, as_labels, read_table, table_labels
from edm2lite.dataset.torchvision_files import read_torchvision


@dataclass(frozen=True)
class ImageCollection:
    """Images to convert.

    Attributes:
        name: Where they come from.
        names: One per image.
        load: The image of an index; raises ValueError if it is damaged.
        table: Labels, or None.
        gray: Whether all are known to have one channel.
    """

    name: str
    names: Sequence[str] = field(repr=False)
    load: Callable[[int], Image.Image] = field(repr=False)
    table: Labels | None = field(repr=False)
    gray: bool = False


def open_collection(path: Path, split: str = "train", labeled: bool = True) -> ImageCollection:
    """The images of a folder, ZIP, CSV, JSONL, or of CIFAR-10's or MNIST's own files.

    Args:
        path: Where they are.
        split: ``train`` or ``test`` of CIFAR-10 and MNIST.
        labeled: Whether folders and ``dataset.json`` say the class of an image.

    Raises:
        FileNotFoundError: There is nothing.
        ValueError: There are no images, or labels for some of them only.
    """
    if path.suffix.lower() in (".csv", ".jsonl"):
        return _from_list(path)
    known = read_torchvision(path, split)
    if known is not None:
        images, labels, gray = known
        names = [f"{split} {i}" for i in range(len(images))]
        known_table = as_labels(labels.tolist(), str(path))
        return ImageCollection(
            str(path), names, lambda i: Image.fromarray(images[i]), known_table, gray
        )
    files = open_files(path)
    names = [name for name in files.names if name.lower().endswith(_PHOTOS)]
    if not names:
        raise ValueError(f"{path} must hold images ({', '.join(_PHOTOS)}), found none")
    found = _labels(files, names) if labeled else None
    return ImageCollection(str(path), names, lambda i: _decode(files, names[i]), found)


def class_folders(names: Sequence[str], origin: str) -> Labels | None:
    """The class of each image by the folder that it is in; None if all lie at the top.

    A folder that contains everything is passed over if there are folders in it.

    Raises:
        ValueError: Some images lie in no folder.
    """
    parts = [PurePosixPath(name).parts for name in names]
    while min(map(len, parts)) > 2 and len({part[0] for part in parts}) == 1:
        parts = [part[1:] for part in parts]
    loose = [name for name, part in zip(names, parts, strict=True) if len(part) == 1]
    if len(loose) == len(names):
        return None
    if loose:
        raise ValueError(
            f"all images of {origin} must lie in a folder named after their class, or none;"
            f" {loose[0]} and {len(loose) - 1} others lie in no folder (--no-labels ignores"
            " folders)"
        )
    classes = sorted({part[0] for part in parts})
    index = {name: i for i, name in enumerate(classes)}
    return as_labels([index[part[0]] for part in parts], origin, classes)


_PHOTOS = (*SUFFIXES, ".jpe", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def _labels(files: Files, names: list[str]) -> Labels | None:
    content = read_table(files)
    if content:
        return table_labels(content, names, str(files.path))
    return class_folders(names, str(files.path))


def _decode(files: Files, name: str) -> Image.Image:
    return _open(io.BytesIO(files.read(name)), name, str(files.path))


def _open(file: Any, name: str, origin: str) -> Image.Image:
    try:
        image = Image.open(file)
        image.load()
        return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{name} in {origin} cannot be read as an image ({error}); remove or repair it"
        ) from error


def _from_list(path: Path) -> ImageCollection:
    """Rows of ``path`` (relative to the list) and, optionally, ``label``."""
    rows = _rows(path)
    if not rows or any(not isinstance(row, dict) or not row.get("path") for row in rows):
        raise ValueError(
            f"{path} must have a column (or key) path in every row, and may have label; for example"
            ' path,label or {"path": "a.jpg", "label": 3}'
        )
    names = [str(row["path"]) for row in rows]

    def load(index: int) -> Image.Image:
        file = path.parent / names[index]
        if not file.is_file():
            raise ValueError(f"{names[index]} in {path} is not there; correct the list")
        return _open(file, names[index], str(path))

    return ImageCollection(
        str(path), names, load, _listed_labels([r.get("label") for r in rows], str(path))
    )


def _rows(path: Path) -> list[Any]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                return list(csv.DictReader(file))
            return [json.loads(line) for line in file if line.strip()]
    except ValueError as error:
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
