"""Condition images on disk: image files that ``dataset.json`` pairs with the images of a data set.

``"conditions": {"image": [["00000/img00000000.png", "conditions/image/img00000000.png"], ...]}``
names the file of every image, for each condition; ``image`` is the condition of a network with
``cond_channels``. The files are 8-bit images, gray (one channel) or RGB, of the height and width of
their image. They are not counted as images of the data set.

A network sees ``(v - mean) / std`` of a stored value v in 0..255, see
:class:`edm2lite.dataset.conditions.Normalization`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edm2lite.dataset.base import ImageDataset
from edm2lite.dataset.conditions import DatasetCondition, Normalization
from edm2lite.dataset.decoding import decode_image
from edm2lite.dataset.files import Files, open_files
from edm2lite.dataset.table import TABLE, read_table
from edm2lite.network.conditions import ConditionImage


class PixelSums:
    """Sums over all condition images of a data set, from which its normalization is measured.

    Args:
        condition: Name of the condition, for messages.
        origin: Name of the data set, for messages.

    Example:
        >>> import numpy as np
        >>> sums = PixelSums("image", "photos")
        >>> sums.add(np.array([[0, 20]], np.uint8))
        >>> sums.normalization()
        Normalization(mean=10.0, std=10.0)
    """

    def __init__(self, condition: str, origin: str):
        self._what = f"condition images ({condition}) of {origin}"
        self._ndim: int | None = None
        self._count = self._sum = self._squares = 0

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """Add an image: [H, W], or [H, W, 3].

        Raises:
            ValueError: If it is gray where others are in color, or the other way round.
        """
        if self._ndim not in (None, pixels.ndim):
            raise ValueError(
                f"{self._what} must be all gray or all in color, found both; convert them to one"
            )
        self._ndim = pixels.ndim
        values = pixels.astype(np.int64)
        self._count += values.size
        self._sum += int(values.sum())
        self._squares += int((values * values).sum())

    def normalization(self) -> Normalization:
        """Mean and standard deviation of all values that were added.

        Raises:
            ValueError: If all values are equal.
        """
        mean = self._sum / self._count
        # whole numbers of any length, so that nothing cancels
        variance = (self._squares * self._count - self._sum**2) / self._count**2
        if not variance:
            raise ValueError(
                f"{self._what} must differ to tell a network anything, all values are {mean:g};"
                " leave them out by --no-conditions"
            )
        return Normalization(mean, math.sqrt(variance))


def read_pairs(content: Mapping[str, Any], origin: str) -> dict[str, dict[str, str]]:
    """Condition -> image -> file of its condition image, as ``dataset.json`` lists them.

    Raises:
        ValueError: If the list has another form, or a condition the name of the label.
    """
    try:
        pairs = {
            str(condition): {_path(name): _path(file) for name, file in listed}
            for condition, listed in (content.get("conditions") or {}).items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"conditions in {TABLE} of {origin} must be lists of [image, file] pairs by the name of"
            f" the condition, got {error}"
        ) from error
    if "label" in pairs:
        raise ValueError(
            f"conditions in {TABLE} of {origin} must not be named label, which stands for the"
            " labels; use another name"
        )
    return pairs


def image_names(
    names: Sequence[str], pairs: Mapping[str, Mapping[str, str]], origin: str
) -> list[str]:
    """Those of the file names that are images of the data set: not the condition images.

    Raises:
        ValueError: If a file is listed as both.
    """
    conditions = {file for listed in pairs.values() for file in listed.values()}
    both = sorted(conditions & {name for listed in pairs.values() for name in listed})
    if both:
        raise ValueError(
            f"{both[0]} in {origin} is listed both as an image and as a condition image; copy it"
            " to a file of its own"
        )
    return [name for name in names if name not in conditions]


def paired_files(
    pairs: Mapping[str, Mapping[str, str]], names: Sequence[str], files: Files
) -> dict[str, list[str]]:
    """Condition -> file of the condition image of each of the images ``names``.

    Raises:
        ValueError: If an image has none, or a file does not exist.
    """
    found: dict[str, list[str]] = {}
    existing = set(files.names)
    for condition, listed in pairs.items():
        absent = [listed[n] for n in names if n in listed and listed[n] not in existing]
        if absent:
            raise ValueError(
                f"{TABLE} in {files.path} lists the condition image {absent[0]}, which does not"
                " exist; add the file or correct the list"
            )
        missing = [name for name in names if name not in listed]
        if missing:
            more = f" and {len(missing) - 1} others have" if len(missing) > 1 else " has"
            raise ValueError(
                f"{TABLE} in {files.path} must list a condition image ({condition}) for every"
                f" image, {missing[0]}{more} none; add them"
            )
        found[condition] = [listed[name] for name in names]
    return found


def read_normalization(content: Mapping[str, Any], origin: str) -> dict[str, Normalization]:
    """The normalization of each condition for which ``dataset.json`` states it.

    Raises:
        ValueError: If it has another form.
    """
    stated = content.get("condition_normalization") or {}
    try:
        return {
            str(condition): Normalization(float(values["mean"]), float(values["std"]))
            for condition, values in stated.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"condition_normalization in {TABLE} of {origin} must have a finite mean and a positive"
            f" std for each condition, got {error}"
        ) from error


def normalization_of(path: str | Path) -> dict[str, Normalization]:
    """The normalization of each condition of a folder or ZIP, stated or by default.

    Raises:
        FileNotFoundError: If there is no such folder or ZIP.
        ValueError: If it has no condition images.
    """
    content = read_table(open_files(Path(path)))
    conditions, stated = read_pairs(content, str(path)), read_normalization(content, str(path))
    if not conditions:
        raise ValueError(f"{path} must have condition images to be an example, it has none")
    return {name: stated.get(name, Normalization()) for name in conditions}


def with_condition_images(
    dataset: ImageDataset,
    files: Files,
    paired: Mapping[str, Sequence[str]],
    normalization: Mapping[str, Normalization],
) -> ImageDataset:
    """The data set with condition images, which are read when they are used.

    Args:
        dataset: Images in the order of ``paired``.
        files: Files of the data set.
        paired: Condition -> file of every image, from :func:`paired_files`.
        normalization: Normalization of a condition; :class:`Normalization` has the default.

    Raises:
        ValueError: If the first image of a condition is damaged.
    """
    stored = [
        _stored_images(name, names, files, dataset, normalization.get(name, Normalization()))
        for name, names in paired.items()
    ]
    return dataclasses.replace(dataset, extra_conditions=(*dataset.extra_conditions, *stored))


def _stored_images(
    condition: str,
    names: Sequence[str],
    files: Files,
    dataset: ImageDataset,
    normalization: Normalization,
) -> DatasetCondition:
    channels = len(decode_image(files.read(names[0]), names[0], dataset.name))

    def pixels(index: int) -> NDArray[np.uint8]:
        name = names[index]
        image = decode_image(files.read(name), name, dataset.name)
        sizes = dataset.sizes
        height, width = dataset.image_shape[1:] if sizes is None else map(int, sizes[index])
        if image.shape[1:] != (height, width):
            raise ValueError(
                f"{name} in {dataset.name} must be of the size of its image"
                f" {dataset.title(index)}, {height} x {width}, got {image.shape[1]} x"
                f" {image.shape[2]}; bring both to one size by edm2lite dataset convert"
            )
        if len(image) != channels:
            raise ValueError(
                f"condition images ({condition}) in {dataset.name} must all have the {channels}"
                f" channels of {names[0]}, {name} has {len(image)}; store all in gray or all in RGB"
            )
        return image

    def values(index: int) -> NDArray[np.float32]:
        return normalization(pixels(index))

    return DatasetCondition(
        ConditionImage(channels, condition), values, pixels, normalization=normalization
    )


def _path(name: Any) -> str:
    """The name of a file with ``/`` between folders; ValueError if it is not text."""
    if not isinstance(name, str):
        raise ValueError(f"names must be text, got {name!r}")
    return name.replace("\\", "/")
