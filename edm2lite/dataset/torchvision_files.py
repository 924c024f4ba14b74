"""CIFAR-10 and MNIST as torchvision stores them on disk; nothing in these files is executed."""

from __future__ import annotations

import gzip
import itertools
import lzma
import math
import pickletools
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Known = tuple[NDArray[np.uint8], NDArray[np.int64], bool]  # images, labels, whether gray

_STEMS = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_BATCHES = (*_STEMS, *(f"{stem}.bin" for stem in _STEMS))
_INTEGERS = ("BININT", "BININT1", "BININT2", "INT", "LONG1")
_UNPACKING = (zlib.error, lzma.LZMAError)
_LARGEST = 2**28  # bytes of a file once unpacked; the largest that there is has 47 MB
_LARGEST_ARCHIVE = 2**30
_MAX_INSTRUCTIONS = 10**6  # of a batch of CIFAR-10; there are 60,000


def read_torchvision(path: Path, split: str) -> Known | None:
    """Images [N, H, W] or [N, H, W, 3], labels [N], and whether images are gray.

    Args:
        path: Folder or archive.
        split: ``"train"`` or ``"test"``.

    Returns:
        None if ``path`` is neither CIFAR-10 nor MNIST.

    Raises:
        FileNotFoundError: If a file of MNIST is missing.
        ValueError: If it is one of the two, but damaged or incomplete.
    """
    if path.is_file() and path.name.endswith((".tar.gz", ".tgz", ".tar")):
        return _cifar(path, _tar_members(path), split)
    if not path.is_dir():
        return None
    for folder in (path, path / "cifar-10-batches-py", path / "cifar-10-batches-bin"):
        batches = [folder / name for name in _BATCHES if (folder / name).is_file()]
        if batches:
            return _cifar(folder, {file.name: file.read_bytes() for file in batches}, split)
    for folder in (path, path / "raw", path / "MNIST" / "raw"):
        if any(folder.glob("*-images-idx3-ubyte*")):
            return _mnist(folder, split)
    return None


def _cifar(path: Path, files: dict[str, bytes], split: str) -> Known:
    images, labels = [], []
    for stem in _STEMS[:5] if split == "train" else _STEMS[5:]:
        if stem in files:
            data, label = _cifar_pickle(path / stem, files[stem])
        elif f"{stem}.bin" in files:
            raw = np.frombuffer(files[f"{stem}.bin"], np.uint8)
            if len(raw) % 3073:
                raise ValueError(
                    f"{path / stem}.bin must hold rows of 3073 bytes; download it again"
                )
            data, label = raw.reshape(-1, 3073)[:, 1:], raw.reshape(-1, 3073)[:, 0].tolist()
        else:
            raise ValueError(f"{path} must hold {stem} as CIFAR-10 does; download it again")
        images.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(np.asarray(label, np.int64))
    return np.ascontiguousarray(np.concatenate(images)), np.concatenate(labels), False


def _cifar_pickle(path: Path, data: bytes) -> tuple[NDArray[np.uint8], list[int]]:
    """Pixels and labels, read from the instructions of a pickle, none of which is executed.

    The only long string is the pixels; the numbers after the string ``labels`` are the labels.
    """
    pixels: list[bytes] = []
    labels: list[int] = []
    in_labels = False
    try:
        for opcode, value, _ in itertools.islice(pickletools.genops(data), _MAX_INSTRUCTIONS):
            if isinstance(value, str | bytes):
                in_labels = value in ("labels", b"labels")
                if len(value) >= 3072:
                    pixels.append(value if isinstance(value, bytes) else value.encode("latin1"))
            elif in_labels and isinstance(value, int) and opcode.name in _INTEGERS:
                labels.append(value)
        if len(pixels) != 1 or len(pixels[0]) != 3072 * len(labels):
            raise ValueError(f"it has {len(labels)} labels, and pixels of another number of images")
    except ValueError as error:
        reason = str(error)[:100]
        raise ValueError(
            f"{path} must be a batch of CIFAR-10 ({reason}); download it again"
        ) from error
    return np.frombuffer(pixels[0], np.uint8).reshape(-1, 3072), labels


def _tar_members(path: Path) -> dict[str, bytes]:
    """Content of the batches in an archive, by file name; nothing is unpacked to disk."""
    try:
        with tarfile.open(path) as archive:
            members = list(_bounded(archive))
            batches = [m for m in members if m.isfile() and Path(m.name).name in _BATCHES]
            return {Path(m.name).name: archive.extractfile(m).read() for m in batches}  # type: ignore[union-attr]  # files have content
    except (tarfile.TarError, EOFError, OSError, ValueError, *_UNPACKING) as error:
        raise ValueError(
            f"{path} must be CIFAR-10's archive ({error}); download it again"
        ) from error


def _bounded(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of an archive, before what is behind them is unpacked."""
    for member in archive:
        if not 0 <= member.size <= _LARGEST_ARCHIVE - member.offset_data:
            raise ValueError(f"it holds more than {_LARGEST_ARCHIVE} bytes")
        yield member


def _mnist(folder: Path, split: str) -> Known:
    prefix = "train" if split == "train" else "t10k"
    images = _idx(folder, f"{prefix}-images-idx3-ubyte", 3)
    labels = _idx(folder, f"{prefix}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise ValueError(f"{folder} must have a label per image; download it again")
    return images, labels.astype(np.int64), True


def _idx(folder: Path, name: str, ndim: int) -> NDArray[np.uint8]:
    """An IDX file of bytes, plain or gzipped."""
    plain, packed = folder / name, folder / f"{name}.gz"
    if not plain.is_file() and not packed.is_file():
        raise FileNotFoundError(f"there is no {plain}; download MNIST again")
    try:
        with open(plain, "rb") if plain.is_file() else gzip.open(packed) as file:
            data = file.read(_LARGEST)
    except (EOFError, OSError, *_UNPACKING) as error:
        raise ValueError(f"{packed} is damaged ({error}); download it again") from error
    start = 4 + 4 * ndim
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(ndim)]
    if data[:4] != bytes([0, 0, 8, ndim]) or len(data) != start + math.prod(shape):
        raise ValueError(f"{folder / name} must be an IDX file of bytes; download it again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
