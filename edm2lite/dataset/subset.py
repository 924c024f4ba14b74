"""A part of a data set: some of its images, with all that is known of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from edm2lite.dataset.base import ImageDataset
from edm2lite.dataset.conditions import DatasetCondition
from edm2lite.dataset.labels import Labels


def subset(dataset: ImageDataset, rows: NDArray[np.int64]) -> ImageDataset:
    """Some images of a data set, in the order of ``rows``; classes keep their numbers.

    Args:
        dataset: The data set.
        rows: [M] indices of the images, at least one.

    Raises:
        ValueError: If there are no rows.

    Example:
        >>> from edm2lite.dataset import open_dataset
        >>> digits = open_dataset("digits")
        >>> part = subset(digits, np.array([5, 7]))
        >>> len(part), part.labels.tolist(), part.label_dim
        (2, [5, 7], 10)
    """
    if not len(rows):
        raise ValueError(f"a part of {dataset.name} must have at least one image, got none")
    read, names = dataset.read, dataset.names
    return dataclasses.replace(
        dataset,
        num_images=len(rows),
        read=lambda i: read(int(rows[i])),
        table=None if dataset.table is None else dataset.table.rows(rows),
        sizes=None if dataset.sizes is None else dataset.sizes[rows],
        names=[names[int(row)] for row in rows] if len(names) else (),
        extra_conditions=tuple(_rows_of(known, rows) for known in dataset.extra_conditions),
        captions=None if dataset.captions is None else dataset.captions.rows(rows),
    )


def _rows_of(known: DatasetCondition, rows: NDArray[np.int64]) -> DatasetCondition:
    values, picture = known.values, known.picture
    shown = None if picture is None else lambda i: picture(int(rows[i]))
    if isinstance(values, np.ndarray):
        return dataclasses.replace(known, values=values[rows], picture=shown)
    function = values
    moved = lambda i, *draw: function(int(rows[i]), *draw)  # noqa: E731
    return dataclasses.replace(known, values=moved, picture=shown)


def rows_of_classes(
    dataset: ImageDataset, classes: Collection[int] | None, per_class: int | None
) -> NDArray[np.int64]:
    """Indices of the images of some classes, the first few of each, in the order of the data set.

    Args:
        dataset: The data set.
        classes: Classes to take. [default: all images]
        per_class: Number of images of each class. [default: all of them]

    Raises:
        ValueError: If the data set has no class indices, or no image of one of the classes.

    Example:
        >>> from edm2lite.dataset import open_dataset
        >>> rows_of_classes(open_dataset("digits"), [9], per_class=3).tolist()
        [9, 19, 29]
    """
    labels = dataset.labels
    if labels is None or labels.ndim != 1:
        raise ValueError(
            f"data.classes and data.per_class need class indices, {dataset.name} has none; give its"
            " images classes by edm2lite dataset convert"
        )
    present = sorted(set(labels.tolist()) - {-1})
    if absent := [c for c in classes or () if c not in present]:
        raise ValueError(
            f"data.classes must be classes that {dataset.name} has images of, got {absent[0]}"
        )
    parts = [np.flatnonzero(labels == c)[:per_class] for c in classes or present]
    return np.sort(np.concatenate(parts))


def told_class(dataset: ImageDataset, label: int, num_classes: int) -> ImageDataset:
    """The same images, all of one class.

    Args:
        dataset: The data set.
        label: The class.
        num_classes: Number of classes.

    Raises:
        ValueError: If the class is not below the number of classes.

    Example:
        >>> from edm2lite.dataset import open_dataset
        >>> told_class(open_dataset("digits"), 10, num_classes=11).labels[:3].tolist()
        [10, 10, 10]
    """
    if not 0 <= label < num_classes:
        raise ValueError(
            f"data.as_class must be one of the {num_classes} classes of the network, got {label}"
        )
    table = Labels(np.full(len(dataset), label, np.int64), num_classes)
    return dataclasses.replace(dataset, table=table)
