"""The header of a safetensors file: what the file holds, and the seal that protects this text.

A file begins with the length of the header (8 bytes), the header as JSON, and then the bytes of the
tensors. Two entries of the metadata make it self-checking: ``digest`` is the xxh3-128 of the tensor
bytes in file order, and ``header_digest``, the seal, is the xxh3-128 of the header itself with
zeros in place of the seal. The seal lets a reader trust a header without reading any tensor.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from edm2lite.strict_json import parse_at, parse_object

if TYPE_CHECKING:
    import torch

TYPES: dict[str, tuple[str, int]] = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
"""Types of numbers by their names in the header: their names in torch, and bytes per number."""
BLANK = "0" * 32
"""Stands in the header where a digest is not yet known."""
_NAMES = {name: type_ for type_, (name, _) in TYPES.items()}
_METADATA = re.compile(r'\{\s*"__metadata__"\s*:\s*')
_MAX_HEADER = 25 * 2**20  # some 200,000 tensors; nested lists of this size parse in 5 s


@dataclass(frozen=True)
class TensorSpec:
    """Type and shape of a stored tensor, and the position of its first byte in the file.

    Attributes:
        type: Type of the numbers by its name in the header, one of :data:`TYPES`.
        shape: Lengths of the axes.
        offset: Position of the first byte in the file.
        file: Index of the file among :attr:`Header.sources`.

    Example:
        >>> TensorSpec("F16", (3, 5)).nbytes
        30
    """

    type: str
    shape: tuple[int, ...]
    offset: int = 0
    file: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """The type in torch."""
        import torch

        dtype: torch.dtype = getattr(torch, TYPES[self.type][0])
        return dtype

    @property
    def itemsize(self) -> int:
        """Bytes per number."""
        return TYPES[self.type][1]

    @property
    def is_floating_point(self) -> bool:
        """Whether the numbers are floating-point."""
        return "F" in self.type

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.itemsize


@dataclass(frozen=True)
class Header:
    """The header of a file, as :func:`read_header` returns it.

    Attributes:
        path: The file.
        tensors: Name -> dtype, shape and position of each tensor, in the order of the header.
        metadata: The strings stored with the tensors.
        data_start: Position of the first byte of the tensors.
        data_bytes: Total size of the tensors in bytes.
        shards: Files that hold the tensors, if ``path`` only refers to them.

    Example:
        >>> header = Header(Path("x.safetensors"), {}, {"digest": "00"}, 8, 0)
        >>> header.digest
        '00'
    """

    path: Path
    tensors: dict[str, TensorSpec]
    metadata: dict[str, str]
    data_start: int
    data_bytes: int
    shards: tuple[Path, ...] = ()

    @property
    def sources(self) -> tuple[Path, ...]:
        """The files that hold the tensors: the shards, or the file itself."""
        return self.shards or (self.path,)

    @property
    def digest(self) -> str | None:
        """The recorded xxh3-128 of the tensor bytes; None in files that other tools wrote."""
        return self.metadata.get("digest")


def type_of(dtype: torch.dtype | str) -> str:
    """The name in the header of a type of torch.

    Args:
        dtype: The type, or its name such as ``"float16"``.

    Raises:
        ValueError: If it is not one that files can hold.

    Example:
        >>> type_of("float16")
        'F16'
    """
    name = str(dtype).removeprefix("torch.")
    if name not in _NAMES:
        raise ValueError(f"dtype must be one of {', '.join(_NAMES)}, got {dtype}")
    return _NAMES[name]


def read_header(path: Path, check_size: bool = True) -> Header:
    """The header of a safetensors file; no tensor is read.

    Args:
        path: The file.
        check_size: Whether to require the file to be as long as its header says. Pass False to
            learn what a truncated file held.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, is not a safetensors file, or has a header that
            changed after it was written.

    Example:
        >>> import tempfile, torch
        >>> from edm2lite.tensorfile import save_tensors
        >>> path = Path(tempfile.mkdtemp()) / "x.safetensors"
        >>> _ = save_tensors(path, {"w": torch.ones(3, 5)}, {"run": "a1"})
        >>> header = read_header(path)
        >>> header.tensors["w"].shape, header.metadata["run"], header.data_bytes
        ((3, 5), 'a1', 60)
    """
    path = Path(path)
    if not path.is_file():
        if os.path.lexists(path):
            raise damaged(path, "is not a file but a folder, a pipe or a link to nothing")
        raise FileNotFoundError(f"there is no file {path}")
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise damaged(path, "is cut short inside its header or is not a safetensors file")
        raw = file.read(length)
    try:
        metadata, rest = _split(raw.decode())
        tensors, end = _layout(rest, 8 + length)
    except NotImplementedError as error:
        raise damaged(path, f"holds numbers of type {error}, which are not read") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, "has an unreadable header") from error
    if check_size and size != 8 + length + end:
        raise damaged(path, f"holds {size} bytes where its header promises {8 + length + end}")
    if not _is_sealed(raw, metadata):
        raise damaged(path, "has a header that changed after it was written")
    return Header(path, tensors, metadata, 8 + length, end)


def header_bytes(
    specs: Mapping[str, TensorSpec], metadata: Mapping[str, str], digest: str, seal: str
) -> bytes:
    """The beginning of a file: the length of the header and the header itself.

    Its size does not depend on ``digest`` and ``seal``, so that it can be written first with
    :data:`BLANK` and again at the end.

    Args:
        specs: Dtype and shape of each tensor, in file order; positions are assigned here.
        metadata: Strings to store.
        digest: The xxh3-128 of the tensor bytes, as 32 hexadecimal digits.
        seal: The xxh3-128 of these bytes with :data:`BLANK` as the seal.

    Example:
        >>> start = header_bytes({"w": TensorSpec("I8", (4,))}, {}, BLANK, BLANK)
        >>> json.loads(start[8:])["w"]
        {'dtype': 'I8', 'shape': [4], 'data_offsets': [0, 4]}
    """
    entries: dict[str, Any] = {
        "__metadata__": {**metadata, "digest": digest, "header_digest": seal}
    }
    end = 0
    for name, spec in specs.items():
        begin, end = end, end + spec.nbytes
        entries[name] = {
            "dtype": spec.type,
            "shape": list(spec.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def damaged(path: Path, what: str) -> ValueError:
    """The error for a file that cannot be used.

    Example:
        >>> print(damaged(Path("a.safetensors"), "ends early"))
        a.safetensors ends early; restore it from a copy or move it out of the folder
    """
    return ValueError(f"{path} {what}; restore it from a copy or move it out of the folder")


def _is_sealed(raw: bytes, metadata: Mapping[str, str]) -> bool:
    """Whether the seal matches the header, or the file is of another tool and has none."""
    seal = metadata.get("header_digest")
    if seal is None:
        return "digest" not in metadata
    blank = raw.replace(f'"header_digest":"{seal}"'.encode(), f'"header_digest":"{BLANK}"'.encode())
    return xxhash.xxh3_128_hexdigest(len(raw).to_bytes(8, "little") + blank) == seal


def _split(text: str) -> tuple[dict[str, str], str]:
    """The metadata of a header, and the JSON object of its tensors."""
    if begin := _METADATA.match(text):
        metadata, end = parse_at(text, begin.end())
        if text[end : end + 1] == ",":
            return _strings(metadata), "{" + text[end + 1 :]
    entries = parse_object(text)
    return _strings(entries.pop("__metadata__", {})), json.dumps(entries)


@functools.lru_cache(maxsize=8)
def _layout(text: str, data_start: int) -> tuple[dict[str, TensorSpec], int]:
    """The tensors of a header and their size; shared by files of one layout, as a run has many."""
    entries = parse_object(text)
    if "__metadata__" in entries:
        raise ValueError("a name stands twice")
    tensors = {name: _spec(entry, data_start) for name, entry in entries.items()}
    return tensors, _end(tensors, data_start)


def _strings(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("metadata must be strings")
    return metadata


def _end(tensors: Mapping[str, TensorSpec], data_start: int) -> int:
    """Bytes of all tensors, which must fill the file without gaps and overlaps."""
    end = data_start
    for spec in sorted(tensors.values(), key=lambda spec: (spec.offset, spec.nbytes)):
        if spec.offset != end:
            raise ValueError("tensors overlap, or leave a gap")
        end += spec.nbytes
    return end - data_start


def _spec(entry: Mapping[str, Any], data_start: int) -> TensorSpec:
    begin, end = entry["data_offsets"]
    numbers = [begin, end, *entry["shape"]]
    if not all(type(n) is int and 0 <= n < 2**63 for n in numbers) or len(numbers) > 66:
        raise ValueError("shape and offsets must be whole numbers")
    if entry["dtype"] not in TYPES:
        raise NotImplementedError(str(entry["dtype"])[:20])
    spec = TensorSpec(entry["dtype"], tuple(entry["shape"]), data_start + begin)
    if begin < 0 or end - begin != spec.nbytes:
        raise ValueError("offsets do not match the shape")
    return spec
