"""Labelled images: a folder or ZIP of PNGs with ``dataset.json``, or scikit-learn's digits.

The stored form is the one of the EDM family: images anywhere below the top, and a ``dataset.json``
with ``{"labels": [["00000/img00000000.png", 3], ...]}`` for a data set with classes.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


@dataclass(frozen=True)
class ImageDataset:
    """Random access to uint8 images.

    Attributes:
        name: Where it came from.
        num_images: How many there are.
        image_shape: (C, H, W) of every image.
        labels: [num_images] int64 class indices, or None.
        read: Image of one index, uint8 [C, H, W].
    """

    name: str
    num_images: int
    image_shape: tuple[int, int, int]
    labels: NDArray[np.int64] | None = field(repr=False)
    read: Callable[[int], NDArray[np.uint8]] = field(repr=False)

    def __len__(self) -> int:
        return self.num_images

    @property
    def label_dim(self) -> int:
        """Number of classes: one more than the largest label; 0 without labels."""
        return 0 if self.labels is None else int(self.labels.max()) + 1

    def images(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """uint8 [N, C, H, W].

        Raises:
            ValueError: A file is damaged or differs in size from the first one.
        """
        return np.stack([self.read(int(i)) for i in indices])


def open_dataset(source: str | Path) -> ImageDataset:
    """``digits``, a folder of images, or a ZIP of images.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: It holds no image, or its dataset.json does not fit.
        ImportError: ``digits`` without scikit-learn.
    """
    if str(source) == "digits":
        return _digits()
    path = Path(source)
    if path.is_dir():
        names = sorted(
            p.relative_to(path).as_posix() for p in path.rglob("*") if p.suffix.lower() in SUFFIXES
        )
        return _from_files(path, names, lambda name: (path / name).read_bytes())
    if path.is_file():
        try:
            archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} must be a folder or a ZIP of images, got {error}") from error
        names = sorted(n for n in archive.namelist() if Path(n).suffix.lower() in SUFFIXES)
        return _from_files(path, names, archive.read)
    raise FileNotFoundError(
        f"no data set at {path}; give a folder or ZIP of images, or 'digits' for scikit-learn's"
    )


def _from_files(path: Path, names: list[str], load: Callable[[str], bytes]) -> ImageDataset:
    if not names:
        raise ValueError(f"{path} must hold images ({', '.join(SUFFIXES)}), found none")
    shape = _decode(path, names[0], load(names[0])).shape

    def read(index: int) -> NDArray[np.uint8]:
        image = _decode(path, names[index], load(names[index]))
        if image.shape != shape:
            raise ValueError(
                f"all images in {path} must be of one size, {names[index]} is {image.shape} where"
                f" {names[0]} is {shape} (channels, height, width)"
            )
        return image

    return ImageDataset(str(path), len(names), shape, _labels(path, names, load), read)


def _decode(path: Path, name: str, data: bytes) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"{name} in {path} cannot be read as an image ({error}); remove it"
        ) from error
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _labels(path: Path, names: list[str], load: Callable[[str], bytes]) -> NDArray[np.int64] | None:
    try:
        table = json.loads(load("dataset.json")).get("labels")
    except (FileNotFoundError, KeyError):
        return None
    except ValueError as error:
        raise ValueError(f"dataset.json in {path} must be JSON, got {error}") from error
    if table is None:
        return None
    by_name = {str(name).replace("\\", "/"): label for name, label in table}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise ValueError(
            f"dataset.json in {path} must label every image, {missing[0]} and {len(missing) - 1}"
            " others have none"
        )
    labels = np.array([by_name[name] for name in names])
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ValueError(f"labels in {path} must be class indices from 0, got {labels.dtype}")
    return labels.astype(np.int64)


def _digits() -> ImageDataset:
    """1797 handwritten digits, 8x8 pixels of 0..16 stretched to 0..255, 10 classes."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the digits come with scikit-learn; pip install 'edm2lite[demo]'"
        ) from error
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    return ImageDataset(
        "digits", len(images), (1, 8, 8), digits.target.astype(np.int64), lambda i: images[i]
    )
