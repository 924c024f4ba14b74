"""Safetensors files that appear complete or not at all, and are checked when they are read.

The layout is that of safetensors, so any tool that reads safetensors reads these files, and files
of other tools are read here. What makes them self-checking is in :mod:`edm2lite.tensorheader`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

import xxhash

from edm2lite.atomic import naming, replacing
from edm2lite.tensorheader import (
    BLANK,
    Header,
    TensorSpec,
    damaged,
    header_bytes,
    read_header,
    type_of,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ADAPTER_FORMAT",
    "MODEL_FORMAT",
    "Header",
    "TensorSpec",
    "TensorWriter",
    "all_finite",
    "as_bytes",
    "check_digest",
    "load_tensors",
    "read_blocks",
    "read_header",
    "save_tensors",
    "verify",
]

MODEL_FORMAT = "edm2lite.model/1"
"""``format`` in the metadata of files that hold the weights of a model."""

ADAPTER_FORMAT = "edm2lite.adapter/1"
"""``format`` in the metadata of files that hold what an adapter adds to a model."""
_BLOCK = 8 * 2**20


class TensorWriter:
    """A file that is written tensor by tensor and takes its name only when complete and on disk.

    Use it as a context manager and ``write`` the values of each tensor in the order of ``specs``,
    in pieces of any size. Leaving the block normally seals, syncs and renames the file. An
    exception discards it and leaves any earlier file of that name as it was.

    Args:
        path: Final name. Missing folders are created.
        specs: Name -> dtype and shape of every tensor; positions in the file are assigned here.
        metadata: Strings for the header; ``digest`` and ``header_digest`` are added.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "x.safetensors"
        >>> with TensorWriter(path, {"w": TensorSpec("F32", (4,))}, {}) as writer:
        ...     writer.write(torch.zeros(3))
        ...     writer.write(torch.ones(1))
        >>> load_tensors(path)[0]["w"]
        tensor([0., 0., 0., 1.])
    """

    def __init__(self, path: Path, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]):
        self.path = Path(path)
        self._specs, self._metadata = dict(specs), dict(metadata)
        self._size, self._written = sum(spec.nbytes for spec in specs.values()), 0
        self._hash = xxhash.xxh3_128()

    def __enter__(self) -> TensorWriter:
        with contextlib.ExitStack() as stack:
            self._file: BinaryIO = stack.enter_context(replacing(self.path, "wb"))
            with naming(self.path):
                self._file.write(header_bytes(self._specs, self._metadata, BLANK, BLANK))
            self._closing = stack.pop_all()
        return self

    def write(self, values: Tensor) -> None:
        """Append the values of a tensor of any shape, in its own dtype."""
        self.append(as_bytes(values.detach().cpu().contiguous()))

    def append(self, data: memoryview) -> None:
        """Append values that are bytes already, as :func:`as_bytes` gives them."""
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
        unsealed = header_bytes(self._specs, self._metadata, digest, BLANK)
        seal = xxhash.xxh3_128_hexdigest(unsealed)
        self._file.seek(0)
        self._file.write(header_bytes(self._specs, self._metadata, digest, seal))


def as_bytes(values: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, without a copy.

    Example:
        >>> import torch
        >>> bytes(as_bytes(torch.tensor([1, 2], dtype=torch.int16)))
        b'\\x01\\x00\\x02\\x00'
    """
    import torch

    return values.reshape(-1).view(torch.uint8).numpy().data


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite, in one pass that takes no memory.

    Example:
        >>> import torch
        >>> all_finite(torch.ones(3)), all_finite(torch.tensor([1.0, torch.nan]))
        (True, False)
    """
    # the extremes of values with a NaN are NaN; testing each value takes 40 times as long
    return not values.numel() or all(bool(v.isfinite()) for v in values.aminmax())


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write a dict of tensors to one file, atomically.

    Args:
        path: File to write. Missing folders are created.
        tensors: Name -> tensor, on any device.
        metadata: Strings for the header; ``digest`` and ``header_digest`` are added.

    Returns:
        ``path``.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "x.safetensors"
        >>> save_tensors(path, {"w": torch.ones(2)}, {"run": "a1"}).name
        'x.safetensors'
    """
    specs = {n: TensorSpec(type_of(v.dtype), tuple(v.shape)) for n, v in tensors.items()}
    with TensorWriter(path, specs, metadata) as writer:
        for value in tensors.values():
            writer.write(value)
    return Path(path)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file and its metadata, checked against its digest if it has one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated or altered, or is not a safetensors file.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "x.safetensors"
        >>> _ = save_tensors(path, {"w": torch.ones(2)}, {"run": "a1"})
        >>> tensors, metadata = load_tensors(path)
        >>> tensors["w"], metadata["run"]
        (tensor([1., 1.]), 'a1')
    """
    import torch

    header = read_header(path)
    data = bytearray(header.data_bytes)
    with open(header.path, "rb") as file:
        file.seek(header.data_start)
        file.readinto(data)
    check_digest(header, xxhash.xxh3_128_hexdigest(data))
    tensors = {}
    for name, spec in header.tensors.items():
        begin = spec.offset - header.data_start
        if spec.type == "BOOL" and max(data[begin : begin + spec.nbytes], default=0) > 1:
            raise damaged(header.path, f"holds a truth value other than 0 and 1 in {name}")
        flat = (
            torch.frombuffer(data, dtype=spec.dtype, count=spec.numel, offset=begin)
            if spec.numel
            else torch.empty(0, dtype=spec.dtype)
        )
        tensors[name] = flat.reshape(spec.shape).clone()
    return tensors, header.metadata


def verify(path: Path) -> Header:
    """Compare every byte of a file with its digest, in bounded memory.

    Returns:
        The header of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated or altered, or is not a safetensors file.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "x.safetensors"
        >>> _ = save_tensors(path, {"w": torch.ones(2)}, {})
        >>> verify(path).data_bytes
        8
    """
    header = read_header(path)
    for _ in read_blocks(header):
        pass
    return header


def read_blocks(header: Header) -> Iterator[tuple[str, Tensor]]:
    """The values of all tensors in file order, in blocks of bounded size, checked at the end.

    Yields:
        The name of a tensor and its next values, flat [n]. Each block has its own memory.

    Raises:
        ValueError: If the file ends early, or its bytes do not match the digest. The latter is
            known only after the last block: discard what was read then.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "x.safetensors"
        >>> _ = save_tensors(path, {"a": torch.ones(2, 3), "b": torch.zeros(4)}, {})
        >>> [(name, len(values)) for name, values in read_blocks(read_header(path))]
        [('a', 6), ('b', 4)]
    """
    import torch

    state = xxhash.xxh3_128()
    tensors = list(header.tensors.items())
    if not header.shards:  # of shards, the order in which they are referred to counts
        tensors.sort(key=lambda item: item[1].offset)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(p, "rb", buffering=0)) for p in header.sources]
        for name, spec in tensors:
            file = files[spec.file]
            file.seek(spec.offset)
            left = spec.nbytes
            while left:
                data = bytearray(file.read(min(left, _BLOCK)))
                if not data or len(data) % spec.itemsize:
                    raise damaged(header.path, "ended early while it was read")
                state.update(data)
                left -= len(data)
                yield name, torch.frombuffer(data, dtype=spec.dtype)
    check_digest(header, state.hexdigest())


def check_digest(header: Header, digest: str) -> None:
    """Refuse a file whose recorded digest is not that of the bytes read.

    A file of another tool, without a digest, is accepted.

    Args:
        header: Header of the file.
        digest: The xxh3-128 of the bytes read, as 32 hexadecimal digits.

    Raises:
        ValueError: If the digests differ.

    Example:
        >>> check_digest(Header(Path("x.safetensors"), {}, {"digest": "00"}, 8, 0), "00")
    """
    if header.digest is not None and header.digest != digest:
        raise damaged(
            header.path, f"holds other bytes (digest {digest}) than were written ({header.digest})"
        )
