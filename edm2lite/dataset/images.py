"""Stored pixels: PNG and other image files, or NPY arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edm2lite.dataset.base import ImageDataset
from edm2lite.dataset.decoding import decode_image
from edm2lite.dataset.files import Files
from edm2lite.dataset.labels import Labels
from edm2lite.dataset.npy import parse_npy


def open_images(
    files: Files, names: Sequence[str], table: Labels | None, listed: Sequence[Any] | None
) -> ImageDataset:
    """A data set of images, which are read when they are used.

    Args:
        files: Files of the data set.
        names: Names of the images among them.
        table: Labels, or None.
        listed: [name, height, width] of each image, or nothing if all are of one size.

    Raises:
        ValueError: If the first image is damaged, or an image has no listed size.
    """
    origin = str(files.path)
    sizes = _sizes(listed, names, origin) if listed else None
    shape = _read(files, names[0]).shape

    def read(index: int) -> NDArray[np.uint8]:
        image = _read(files, names[index])
        expected = shape if sizes is None else (shape[0], *sizes[index].tolist())
        if image.shape != expected:
            raise ValueError(
                f"all images in {origin} must be of one size, {names[index]} is {image.shape} where"
                f" {names[0]} is {shape} (channels, height, width); bring them to one size by"
                " edm2lite dataset convert"
                if sizes is None
                else f"{names[index]} in {origin} must be {expected} (channels, height, width) as"
                f" dataset.json says, it is {image.shape}; convert the data set again"
            )
        return image

    return ImageDataset(origin, len(names), shape, read, table, sizes, names)


def load_array(data: bytes, name: str, origin: str) -> NDArray[Any]:
    """The array [C, H, W] of an NPY file; pickled objects are refused.

    Args:
        data: Content of the file.
        name: Name of the file for messages.
        origin: Name of the data set for messages.

    Raises:
        ValueError: If the file is damaged, or holds an array of another form.
    """
    try:
        array = parse_npy(data)
    except ValueError as error:
        raise ValueError(f"{name} in {origin} {error}; remove it") from error
    if array.ndim != 3 or array.dtype.kind not in "uf":
        raise ValueError(
            f"{name} in {origin} must be [channels, height, width] of uint8 (pixels) or float32"
            f" (latents), got {list(array.shape)} {array.dtype}"
        )
    return array


def _read(files: Files, name: str) -> NDArray[np.uint8]:
    data = files.read(name)
    if not name.endswith(".npy"):
        return decode_image(data, name, str(files.path))
    array = load_array(data, name, str(files.path))
    if array.dtype != np.uint8:
        raise ValueError(f"{name} in {files.path} must hold uint8 pixels, got {array.dtype}")
    return array


def _sizes(listed: Sequence[Any], names: Sequence[str], origin: str) -> NDArray[np.int64]:
    try:
        by_name = {name: (height, width) for name, height, width in listed}
        if not all(type(n) is int and 0 < n < 2**31 for size in by_name.values() for n in size):
            raise ValueError("a height or width that is no whole number, at least 1")
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"sizes in dataset.json of {origin} must be [name, height, width] each, got {error}"
        ) from error
    missing = [name for name in names if name not in by_name]
    if missing:
        raise ValueError(
            f"sizes in dataset.json of {origin} must cover every image, {missing[0]} is missing;"
            " convert the data set again"
        )
    return np.array([by_name[name] for name in names], dtype=np.int64)
