"""Safetensors files, written tensor by tensor, whole or not at all, and checked when read.

The layout is that of safetensors, so anything that reads safetensors reads these files. Two strings
in the metadata make them self-checking: ``digest`` (xxh3-128 of the tensor bytes in file order) and
``header_digest`` (xxh3-128 of the header text while that field holds zeros). The second one lets a
reader trust the header without touching gigabytes of tensors.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
import xxhash
from torch import Tensor

from edm2lite.atomic import naming, replacing

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
MODEL_FORMAT = "edm2lite.model/1"
"""``format`` in the metadata of files that hold the weights of a model."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_BLANK = "0" * 32
_MAX_HEADER = 100 * 2**20  # the limit of the safetensors library
_BLOCK = 8 * 2**20


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of one stored tensor, and where its bytes begin in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int = 0

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Header:
    """What a file says about itself: tensors in file order, metadata, and whether it is sealed."""

    path: Path
    tensors: dict[str, TensorSpec]
    metadata: dict[str, str]
    data_start: int
    data_bytes: int

    @property
    def digest(self) -> str | None:
        """The recorded xxh3-128 of the tensor bytes; None for files that other tools wrote."""
        return self.metadata.get("digest")


class TensorWriter:
    """Writes one file in order; it takes its final name only when complete and on disk.

    Use as a context manager: ``write`` the values of each tensor of ``specs`` in their order, in
    pieces of any size. Leaving the block normally seals, syncs and renames; leaving it by an
    exception removes the partial file and leaves any earlier file of that name as it was.

    Args:
        path: Final name. Its folder is made if missing.
        specs: Name -> shape and dtype of every tensor (offsets are assigned here).
        metadata: Strings for the header; ``digest`` and ``header_digest`` are added.
    """

    def __init__(self, path: Path, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]):
        self.path = Path(path)
        entries: dict[str, Any] = {}
        end = 0
        for name, spec in specs.items():
            begin, end = end, end + spec.nbytes
            entries[name] = {
                "dtype": _NAMES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [begin, end],
            }
        self._size, self._written = end, 0
        self._entries, self._metadata = entries, dict(metadata)
        self._hash = xxhash.xxh3_128()

    def __enter__(self) -> TensorWriter:
        with contextlib.ExitStack() as stack:
            self._file: BinaryIO = stack.enter_context(replacing(self.path, "wb"))
            with naming(self.path):
                self._file.write(_header_bytes(self._entries, self._metadata, _BLANK, _BLANK))
            self._closing = stack.pop_all()
        return self

    def write(self, values: Tensor) -> None:
        """Append the values of a tensor (any shape) in the dtype that they have."""
        self.append(as_bytes(values.detach().cpu().contiguous()))

    def append(self, data: memoryview) -> None:
        """Append values that are bytes already (:func:`as_bytes`)."""
        self._hash.update(data)
        with naming(self.path):
            self._file.write(data)
        self._written += len(data)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._closing.__exit__(kind, error, trace)
            return
        with self._closing, naming(self.path):
            assert self._written == self._size, (self.path, self._written, self._size)
            self._seal()

    def _seal(self) -> None:
        digest = self._hash.hexdigest()
        unsealed = _header_bytes(self._entries, self._metadata, digest, _BLANK)
        seal = xxhash.xxh3_128_hexdigest(unsealed)
        self._file.seek(0)
        self._file.write(_header_bytes(self._entries, self._metadata, digest, seal))


def as_bytes(values: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return values.reshape(-1).view(torch.uint8).numpy().data


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write a dict of tensors, atomically; returns ``path``."""
    specs = {name: TensorSpec(value.dtype, tuple(value.shape)) for name, value in tensors.items()}
    with TensorWriter(path, specs, metadata) as writer:
        for value in tensors.values():
            writer.write(value)
    return Path(path)


def read_header(path: Path, whole: bool = True) -> Header:
    """Shapes, dtypes, offsets and metadata of a safetensors file; no tensor is read.

    Args:
        path: The file.
        whole: Whether the size must be what the header promises. Without it, a file that was cut
            short still tells what it held.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is cut short, is not safetensors, or its header was altered.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise _damaged(path, "is cut short inside its header or is not a safetensors file")
        raw = file.read(length)
    try:
        entries = json.loads(raw)
        metadata = entries.pop("__metadata__", {})
        tensors = {name: _spec(entry, 8 + length) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, "has an unreadable header") from error
    end = 0
    for spec in tensors.values():
        end = max(end, spec.offset - 8 - length + spec.nbytes)
    if whole and size != 8 + length + end:
        raise _damaged(path, f"holds {size} bytes where its header promises {8 + length + end}")
    seal = metadata.get("header_digest")
    if seal is None and "digest" in metadata:
        raise _damaged(path, "has a header that changed after it was written")
    if seal is not None:
        blank = raw.replace(
            f'"header_digest":"{seal}"'.encode(), f'"header_digest":"{_BLANK}"'.encode()
        )
        if xxhash.xxh3_128_hexdigest(length.to_bytes(8, "little") + blank) != seal:
            raise _damaged(path, "has a header that changed after it was written")
    return Header(path, tensors, metadata, 8 + length, end)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a file, checked against its digest where it has one.

    Raises:
        FileNotFoundError, ValueError: As :func:`read_header`, or the digest does not match.
    """
    header = read_header(path)
    data = bytearray(header.data_bytes)
    with open(header.path, "rb") as file:
        file.seek(header.data_start)
        file.readinto(data)
    check_digest(header, xxhash.xxh3_128_hexdigest(data))
    tensors = {}
    for name, spec in header.tensors.items():
        begin = spec.offset - header.data_start
        flat = (
            torch.frombuffer(data, dtype=spec.dtype, count=spec.numel, offset=begin)
            if spec.numel
            else torch.empty(0, dtype=spec.dtype)
        )
        tensors[name] = flat.reshape(spec.shape).clone()
    return tensors, header.metadata


def verify(path: Path) -> Header:
    """Read every byte of a file and compare with its digest; bounded memory.

    Raises:
        FileNotFoundError, ValueError: As :func:`load_tensors`.
    """
    header = read_header(path)
    for _ in read_blocks(header):
        pass
    return header


def read_blocks(header: Header) -> Iterator[tuple[str, Tensor]]:
    """(name, values [n]) of all tensors in file order, in blocks of bounded size; then the digest.

    Raises:
        ValueError: The file ends early, or (after the last block) the digest does not match.
    """
    state = xxhash.xxh3_128()
    with open(header.path, "rb", buffering=0) as file:
        for name, spec in sorted(header.tensors.items(), key=lambda item: item[1].offset):
            file.seek(spec.offset)
            left = spec.nbytes
            while left:
                data = bytearray(file.read(min(left, _BLOCK)))
                if not data or len(data) % spec.dtype.itemsize:
                    raise _damaged(header.path, "ended early while it was read")
                state.update(data)
                left -= len(data)
                yield name, torch.frombuffer(data, dtype=spec.dtype)
    check_digest(header, state.hexdigest())


def check_digest(header: Header, digest: str) -> None:
    """Raise ValueError if the recorded digest exists and differs from ``digest``."""
    if header.digest is not None and header.digest != digest:
        raise _damaged(
            header.path, f"holds other bytes (digest {digest}) than were written ({header.digest})"
        )


def _header_bytes(
    entries: Mapping[str, Any], metadata: Mapping[str, str], digest: str, seal: str
) -> bytes:
    """Length prefix and JSON, padded to a multiple of 8; its size does not depend on digests."""
    full = {"__metadata__": {**metadata, "digest": digest, "header_digest": seal}, **entries}
    text = json.dumps(full, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _spec(entry: Mapping[str, Any], data_start: int) -> TensorSpec:
    begin, end = entry["data_offsets"]
    spec = TensorSpec(DTYPES[entry["dtype"]], tuple(entry["shape"]), data_start + begin)
    if begin < 0 or end - begin != spec.nbytes:
        raise ValueError("offsets do not match the shape")
    return spec


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} {what}; restore it from a copy or move it out of the folder")
