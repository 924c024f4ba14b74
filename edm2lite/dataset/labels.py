"""Labels of a data set: class indices or vectors, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edm2lite.dataset.files import Files
from edm2lite.strict_json import shown

GENERATED = "settings.json"
"""Name of the file that tells a folder of images that edm2lite has generated."""

MAX_CLASSES = 2**24
"""Largest number of classes."""


@dataclass(frozen=True)
class Labels:
    """The label of every image of a data set.

    Attributes:
        values: [N] int64 class indices (-1: no label), or [N, L] float32 vectors.
        label_dim: Number of classes, or L.
        classes: Name of each class, "" for one without a name; empty if there are no names.
    """

    values: NDArray[Any]
    label_dim: int
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unnamed = ("",) * (self.label_dim - len(self.classes))
        names = (*self.classes, *unnamed) if any(self.classes) else ()
        object.__setattr__(self, "classes", names)

    def rows(self, indices: NDArray[np.int64]) -> Labels:
        """The labels of some images, in that order."""
        return Labels(self.values[indices], self.label_dim, self.classes)


def as_labels(
    rows: Sequence[Any], origin: str, classes: Sequence[str] = (), label_dim: int | None = None
) -> Labels:
    """Labels from one value per image: all of them class indices (or None), or all vectors.

    Vectors that are all one-hot are kept as the indices that they stand for.

    Args:
        rows: Label of each image.
        origin: Name of the data set for messages.
        classes: Names of the classes, "" for one without a name; the last ones may be left out.
        label_dim: Number of classes; that of ``classes``, or one more than the largest index, if
            not given.

    Raises:
        ValueError: If labels are something else, or an index is not below the number of classes.

    Example:
        >>> as_labels([0, None, 2], "photos")
        Labels(values=array([ 0, -1,  2]), label_dim=3, classes=())
        >>> as_labels([[0, 1], [1, 0]], "photos").values
        array([1, 0])
    """
    if any(isinstance(row, Sequence | np.ndarray) and not isinstance(row, str) for row in rows):
        return _vectors(rows, origin, classes)
    filled = [-1 if row is None else row for row in rows]
    bad = [row for row in filled if type(row) is not int or not -1 <= row < MAX_CLASSES]
    if bad:
        raise ValueError(
            f"labels in {origin} must be class indices from 0 to {MAX_CLASSES - 1} (null for none)"
            f" or lists of numbers, got {shown(bad[0])}"
        )
    values = np.array(filled, dtype=np.int64)
    label_dim = label_dim or len(classes) or int(values.max(initial=-1)) + 1
    if values.max(initial=-1) >= label_dim:
        raise ValueError(
            f"labels in {origin} must be below its number of classes, {label_dim}, got"
            f" {values.max()}"
        )
    _check_names(classes, label_dim, origin)
    if not label_dim:
        raise ValueError(f"labels in {origin} must label at least one image, all are null")
    return Labels(values, label_dim, tuple(classes))


def table_labels(content: dict[str, Any], names: Sequence[str], origin: str) -> Labels | None:
    """The labels in a ``dataset.json``, in the order of ``names``; None if it has none.

    Args:
        content: Content of ``dataset.json``.
        names: Names of the images.
        origin: Name of the data set for messages.

    Raises:
        ValueError: If the list of labels is malformed, or leaves out an image.
    """
    try:
        table = content.get("labels")
        by_name = {str.replace(n, "\\", "/"): label for n, label in table} if table else {}
        classes = content.get("classes") or []
        if not isinstance(classes, list) or not all(isinstance(n, str | None) for n in classes):
            raise ValueError("classes that are no names")
        classes = ["" if name is None else name for name in classes]
        label_dim = content.get("label_dim") or 0
        if type(label_dim) is not int or not 0 <= label_dim <= MAX_CLASSES:
            raise ValueError(f"label_dim {shown(label_dim)}")
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"dataset.json in {origin} must have a list labels of [name, label] pairs, got {error}"
        ) from error
    if table is None:
        return None
    missing = [name for name in names if name not in by_name]
    if missing:
        others = f" and {len(missing) - 1} others have" if len(missing) > 1 else " has"
        raise ValueError(
            f"dataset.json in {origin} must label every image, {missing[0]}{others} none; add them"
            " (null for an image without a class)"
        )
    return as_labels([by_name[name] for name in names], origin, classes, label_dim)


def stated_labels(content: dict[str, Any], names: Sequence[str], files: Files) -> Labels | None:
    """The labels of the images of a folder or ZIP, by ``dataset.json`` or else by their folders.

    The folders of images that edm2lite has generated are numbered by seeds, and are no classes.

    Args:
        content: Content of ``dataset.json``, empty if there is none.
        names: Names of the images.
        files: Files of the folder or ZIP.

    Raises:
        ValueError: As :func:`table_labels` and :func:`class_folders`.
    """
    if content:
        return table_labels(content, names, str(files.path))
    return None if GENERATED in files.names else class_folders(names, str(files.path))


def class_folders(names: Sequence[str], origin: str) -> Labels | None:
    """The class of each image by the folder that it is in; None if all lie at the top.

    A folder that contains everything is skipped if there are folders in it.

    Args:
        names: Names of the images, with ``/`` between folders.
        origin: Name of the collection for messages.

    Raises:
        ValueError: If some images lie in no folder.

    Example:
        >>> class_folders(["all/cat/1.png", "all/dog/1.png", "all/cat/2.png"], "photos").values
        array([0, 1, 0])
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
            f" {loose[0]} and {len(loose) - 1} others lie in no folder (edm2lite dataset convert"
            " --no-labels ignores folders)"
        )
    classes = sorted({part[0] for part in parts})
    index = {name: i for i, name in enumerate(classes)}
    return as_labels([index[part[0]] for part in parts], origin, classes)


def _vectors(rows: Sequence[Any], origin: str, classes: Sequence[str]) -> Labels:
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused below
            values = np.array(rows, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"label vectors in {origin} must be numbers and of one length for all images ({error})"
        ) from error
    if values.ndim != 2 or not values.shape[1] or not np.isfinite(values).all():
        raise ValueError(
            f"label vectors in {origin} must be finite and of one length, got an array of shape"
            f" {list(values.shape)}"
        )
    _check_names(classes, values.shape[1], origin)
    if np.isin(values, (0, 1)).all() and (values.sum(1) == 1).all():
        return Labels(values.argmax(1).astype(np.int64), values.shape[1], tuple(classes))
    return Labels(values, values.shape[1])


def _check_names(classes: Sequence[str], label_dim: int, origin: str) -> None:
    if len(classes) > label_dim:
        raise ValueError(
            f"classes in {origin} must be at most one name for each of its {label_dim} classes, got"
            f" {len(classes)} names"
        )
