"""Latents in safetensors shards: written in order, read at random through memory maps.

The folder holds ``latents.json`` (description of the latents, and the files that hold them), the
shards ``latents-00000.safetensors``, ..., ``labels.safetensors`` if there are labels and
``captions.json``, a list of texts for each row, if there are captions. A shard holds

- ``latents`` [n, 2C, h, w] float32: means, then standard deviations, all of one size;
- ``positions`` [n] int64: index of each image in the data set that was encoded;
- ``moments`` [2, C] float64: mean of the latents over these images, and mean of their squares.

``latents.json`` is written last: a folder without it is incomplete.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from edm2lite.atomic import replacing
from edm2lite.dataset.base import ImageDataset
from edm2lite.dataset.captions import Captions, as_captions
from edm2lite.dataset.labels import MAX_CLASSES, Labels
from edm2lite.dataset.latents import checked
from edm2lite.models.encoders import LatentEncoder, encoder_from_dict
from edm2lite.strict_json import parse, parse_object
from edm2lite.tensorfile import Header, all_finite, load_tensors, read_header, save_tensors

FORMAT = "edm2lite.latents/1"
INDEX = "latents.json"
LABELS = "labels.safetensors"
CAPTIONS = "captions.json"
AROUND = 2**16  # bytes that Linux maps on either side of a page that is read
OPEN_MAPS = 512  # each holds a file descriptor; the usual limit is 1024


def shard_name(number: int) -> str:
    """File name of a shard: ``"latents-00003.safetensors"``."""
    return f"latents-{number:05d}.safetensors"


def is_incomplete(path: Path) -> bool:
    """Whether a folder holds shards but not yet the index that makes them a data set."""
    return not (path / INDEX).is_file() and any(path.glob("latents-*.safetensors"))


@dataclass(frozen=True)
class Index:
    """The content of ``latents.json``.

    Attributes:
        encoder: Description of the latents.
        shards: ``count``, ``size`` [h, w] and ``digest`` of each shard, in row order.
        label_dim: Number of classes or length of the label vectors; None without labels.
        classes: Names of the classes; empty without labels or names.
        settings: Settings of the encoding; another encoding into the folder must have the same.
        captions: Digest of the captions, from :func:`save_captions`; None without captions.
    """

    encoder: LatentEncoder
    shards: Sequence[Mapping[str, Any]]
    label_dim: int | None
    classes: tuple[str, ...]
    settings: Mapping[str, Any]
    captions: str | None = None

    def write(self, folder: Path, values: NDArray[Any] | None) -> None:
        """Write the labels and then the index, which completes the data set.

        Args:
            folder: Folder of the data set.
            values: [N] or [N, L] labels in row order, or None.
        """
        if values is not None:
            save_tensors(folder / LABELS, {"labels": torch.from_numpy(values)}, {"format": FORMAT})
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        if self.captions is None:
            del content["captions"]  # versions that do not know them read what has none
        with replacing(folder / INDEX) as file:
            json.dump(content, file, indent=1)

    @classmethod
    def read(cls, folder: Path) -> Index:
        """The index in a folder.

        Raises:
            ValueError: If the file is damaged or of a newer version.
        """
        try:
            content = parse_object((folder / INDEX).read_bytes())
            if content.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            encoder = encoder_from_dict(content.pop("encoder"))
            if not isinstance(encoder, LatentEncoder) or not encoder.mean:
                raise ValueError("its encoder is not one for latents")
            shards = [_shard(entry) for entry in content.pop("shards")]
            if not shards:
                raise ValueError("it lists no shards")
            classes = tuple(content.pop("classes"))
            label_dim = content.pop("label_dim")
            is_number = type(label_dim) is int and 0 < label_dim <= MAX_CLASSES
            if label_dim is not None and not is_number:
                raise ValueError("label_dim is no number of classes")
            if not all(isinstance(name, str) for name in classes):
                raise ValueError("classes are no names")
            if len(classes) > (label_dim or 0):
                raise ValueError("it has more names than classes")
            found = {"encoder": encoder, "shards": shards, "label_dim": label_dim}
            return cls(**found, classes=classes, **content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{folder / INDEX} must be the index of a latent data set that this version knows"
                f" ({error}); encode the data set again"
            ) from error


def open_shards(path: Path) -> ImageDataset:
    """A latent data set. Headers of the shards are checked; latents are read when they are used.

    Args:
        path: Folder of the data set.

    Raises:
        FileNotFoundError: If a shard is missing.
        ValueError: If a shard is damaged, or belongs to another encoding.
    """
    index = Index.read(path)
    channels = len(index.encoder.mean)
    headers = [
        _header(path / shard_name(i), channels, shard) for i, shard in enumerate(index.shards)
    ]
    counts = [shard["count"] for shard in index.shards]
    starts = np.cumsum([0, *counts])
    total = int(starts[-1])
    sizes = np.repeat(np.array([s["size"] for s in index.shards], np.int64), counts, axis=0)
    names = _Rows(starts)

    @lru_cache(maxsize=OPEN_MAPS)
    def mapped(shard: int) -> _Map:
        return _Map(headers[shard])

    def read(row: int) -> NDArray[np.float32]:
        shard = int(np.searchsorted(starts, row, side="right")) - 1
        latents = mapped(shard).row(row - int(starts[shard]))
        return checked(latents, names[row], str(path))

    shape = (channels, int(sizes[0, 0]), int(sizes[0, 1]))
    table = None
    if index.label_dim is not None:
        table = _labels(path / LABELS, total, index.label_dim, index.classes)
    mixed = sizes if (sizes != sizes[0]).any() else None
    captions = None if index.captions is None else _captions(path / CAPTIONS, names, index.captions)
    return ImageDataset(
        str(path), total, shape, read, table, mixed, names, index.encoder, captions=captions
    )


def save_captions(folder: Path, captions: Captions) -> str:
    """Write captions in row order; the digest that the index keeps of them."""
    text = json.dumps(captions.texts).encode()
    with replacing(folder / CAPTIONS, "wb") as file:
        file.write(text)
    return xxhash.xxh3_64_hexdigest(text)


def _captions(path: Path, names: Sequence[str], digest: str) -> Captions | None:
    text = path.read_bytes() if path.is_file() else b""
    is_same = xxhash.xxh3_64_hexdigest(text) == digest
    rows = parse(text) if is_same else None
    if not isinstance(rows, list) or len(rows) != len(names):
        raise ValueError(
            f"{path} must hold the captions that belong to {INDEX}, it is missing or altered;"
            " encode the data set again"
        )
    return as_captions(rows, names, str(path))


def _labels(path: Path, total: int, label_dim: int, classes: tuple[str, ...]) -> Labels:
    values = load_tensors(path)[0].get("labels", torch.empty(0))
    is_index = values.dtype == torch.int64 and values.shape == (total,)
    is_vector = values.dtype == torch.float32 and values.shape == (total, label_dim)
    if not is_index and not is_vector:
        raise ValueError(
            f"{path} must hold {total} labels of {label_dim} classes or numbers, got"
            f" {list(values.shape)} {values.dtype}; encode the data set again"
        )
    low, high = values.aminmax()
    if not (low >= -1 and high < label_dim if is_index else all_finite(values)):
        raise ValueError(
            f"{path} must hold finite numbers, or classes below {label_dim}; encode the data set"
            " again"
        )
    return Labels(values.numpy(), label_dim, classes)


class _Map:
    """Rows of one shard; pages that were read are given back, so that memory stays flat."""

    def __init__(self, header: Header):
        spec = header.tensors["latents"]
        self._shape, self._offset = spec.shape[1:], spec.offset
        self._stride = spec.nbytes // spec.shape[0]
        with open(header.path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self._map.madvise(mmap.MADV_RANDOM)  # reading ahead would be for nothing

    def row(self, index: int) -> NDArray[np.float32]:
        """A copy of one row."""
        begin = self._offset + index * self._stride
        values = np.frombuffer(self._map, np.float32, self._stride // 4, begin).reshape(self._shape)
        copy: NDArray[np.float32] = values.copy()
        first = max(0, begin - AROUND) // mmap.PAGESIZE * mmap.PAGESIZE
        last = min(begin + self._stride + AROUND, len(self._map))
        self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
        return copy


def _shard(entry: Mapping[str, Any]) -> dict[str, Any]:
    count, (height, width), digest = entry["count"], entry["size"], entry["digest"]
    if not all(type(n) is int and 0 < n < 2**31 for n in (count, height, width)):
        raise ValueError("counts and sizes of its shards must be whole numbers, at least 1")
    return {"count": count, "size": [height, width], "digest": digest}


class _Rows(Sequence[str]):
    """Names of rows, as ``latents-00000.safetensors[17]``."""

    def __init__(self, starts: NDArray[np.int64]):
        self._starts = starts

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, row: Any) -> Any:
        if row >= len(self):
            raise IndexError(row)
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return f"{shard_name(shard)}[{row - int(self._starts[shard])}]"


def _header(path: Path, channels: int, shard: Mapping[str, Any]) -> Header:
    header = read_header(path)
    spec = header.tensors.get("latents")
    shape = (shard["count"], 2 * channels, *shard["size"])
    if spec is None or spec.type != "F32" or spec.shape != shape:
        raise ValueError(
            f"{path} must hold latents [{', '.join(map(str, shape))}] float32 as {INDEX} says;"
            " encode the data set again"
        )
    if header.digest != shard["digest"]:
        raise ValueError(
            f"{path} belongs to another encoding than {INDEX}; encode the data set again"
        )
    return header
