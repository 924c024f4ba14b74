"""Tensors of a folder of torch.distributed.checkpoint (``.metadata`` and ``*.distcp``), in pieces.

``.metadata`` is a pickle. It is read as data by :mod:`edm2lite.interop.inert_pickle`; torch's own
reader would execute it. The pieces are files of ``torch.save`` within the shards, and are read by
``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from edm2lite.interop.inert_pickle import Name, Record, read_pickle, shown
from edm2lite.interop.plain_records import as_sizes
from edm2lite.interop.torch_files import load_weights_only
from edm2lite.tensorheader import TYPES

_PACKAGE = "torch.distributed.checkpoint"
_CLASSES = (
    "metadata.Metadata",
    "metadata.TensorStorageMetadata",
    "metadata.BytesStorageMetadata",
    "metadata.ChunkStorageMetadata",
    "metadata.TensorProperties",
    "metadata.MetadataIndex",
    "metadata.StorageMeta",
    "metadata._MEM_FORMAT_ENCODING",
    "filesystem._StorageInfo",
)
_DTYPES = {f"torch.{dtype}": type_ for type_, (dtype, _) in TYPES.items()}
_NAMES = frozenset(
    {
        *(f"{_PACKAGE}.{name}" for name in _CLASSES),
        *_DTYPES,
        "collections.OrderedDict",
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
        "pathlib._local.PosixPath",
        "pathlib._local.WindowsPath",
        "torch.Size",
        "torch.serialization._get_layout",
        *(f"torch.{name}" for name in ("uint16", "uint32", "uint64", "complex64", "complex128")),
        *(f"torch.{name}" for name in ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")),
    }
)


@dataclass(frozen=True)
class Piece:
    """A part of a tensor, and where its bytes are.

    Attributes:
        offsets: First index of the part along each axis.
        sizes: Lengths of the part.
        path: The shard.
        begin: Offset of the part in the shard.
        length: Number of bytes there.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    path: Path
    begin: int
    length: int


@dataclass(frozen=True)
class DistributedTensor:
    """A tensor in a distributed checkpoint.

    Attributes:
        type: Type of its numbers by its name in a safetensors header, or in torch if that has none.
        shape: Lengths of the axes.
        pieces: Parts of the tensor.
    """

    type: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    def values(self) -> Iterator[Tensor]:
        """The values in order, in tensors of any shape; one part in memory if rows are sharded.

        Raises:
            ValueError: If a part is damaged or is not what the metadata says.
        """
        if all(p.sizes[1:] == self.shape[1:] for p in self.pieces):
            for piece in sorted(self.pieces, key=lambda piece: piece.offsets):
                yield _read(piece)
            return
        whole: Tensor | None = None
        for piece in self.pieces:
            part = _read(piece)
            whole = torch.empty(self.shape, dtype=part.dtype) if whole is None else whole
            index = [slice(o, o + n) for o, n in zip(piece.offsets, piece.sizes, strict=True)]
            whole[tuple(index)] = part
        if whole is not None:
            yield whole


def distributed_tensors(folder: Path) -> dict[str, DistributedTensor]:
    """The tensors of a checkpoint by their full names; nothing of them is read.

    Args:
        folder: Folder with ``.metadata``.

    Raises:
        ValueError: If the metadata are damaged or ask for anything but descriptions of tensors, or
            a shard is missing or cut short.

    Example:
        >>> import tempfile, warnings
        >>> import torch.distributed.checkpoint as dcp
        >>> folder = Path(tempfile.mkdtemp()) / "5"
        >>> with warnings.catch_warnings(action="ignore"):
        ...     _ = dcp.save({"net": {"w": torch.ones(2)}}, checkpoint_id=folder)
        >>> tensors = distributed_tensors(folder)
        >>> list(tensors), list(tensors["net.w"].values())
        (['net.w'], [tensor([1., 1.])])
    """
    path = folder / ".metadata"
    try:
        root, _ = read_pickle(memoryview(path.read_bytes()), _NAMES, record_keys=True)
        state = _state(root, "metadata.Metadata")
        described, stored = state.get("state_dict_metadata"), state.get("storage_data")
        if not isinstance(described, dict) or not isinstance(stored, dict):
            raise ValueError("must describe tensors and where they are stored")
        places = {_index(key): value for key, value in stored.items()}
        return {
            str(name): _tensor(folder, str(name), record, places)
            for name, record in described.items()
            if isinstance(record, Record) and record.name.endswith(".TensorStorageMetadata")
        }
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error


def _tensor(
    folder: Path, name: str, record: Record, places: dict[object, object]
) -> DistributedTensor:
    state = _state(record, "metadata.TensorStorageMetadata")
    shape, chunks = as_sizes(state.get("size")), state.get("chunks")
    if shape is None or not isinstance(chunks, list):
        raise ValueError(f"must give the shape of {shown(name)}")
    pieces = []
    for chunk in chunks:
        part = _state(chunk, "metadata.ChunkStorageMetadata")
        offsets, sizes = as_sizes(part.get("offsets")), as_sizes(part.get("sizes"))
        if offsets is None or sizes is None or not len(offsets) == len(sizes) == len(shape):
            raise ValueError(f"must say where the parts of {shown(name)} begin")
        if any(o + n > m for o, n, m in zip(offsets, sizes, shape, strict=True)):
            raise ValueError(f"has a part of {shown(name)} outside of it")
        info = _state(places.get((name, offsets)), "filesystem._StorageInfo")
        pieces.append(Piece(offsets, sizes, *_place(folder, name, info)))
    if sum(math.prod(piece.sizes) for piece in pieces) != math.prod(shape):
        raise ValueError(f"must give all parts of {shown(name)} once")
    return DistributedTensor(_type(state.get("properties")), shape, tuple(pieces))


def _place(folder: Path, name: str, info: dict[object, object]) -> tuple[Path, int, int]:
    """Shard, offset and length of a part."""
    file, begin, length = (info.get(key) for key in ("relative_path", "offset", "length"))
    if not isinstance(file, str) or Path(file).name != file:
        raise ValueError(f"must name a file beside it for {shown(name)}, names {shown(file)}")
    if type(begin) is not int or type(length) is not int or begin < 0 or length < 1:
        raise ValueError(f"must say where {shown(name)} is in {shown(file)}")
    if info.get("transform_descriptors") is not None:
        raise ValueError("refers to compressed shards, which are not read; save them plain")
    path = folder / file
    if not path.is_file():
        raise ValueError(f"refers to {file}, which is missing; restore the checkpoint from a copy")
    if path.stat().st_size < begin + length:
        raise ValueError(f"refers to more of {file} than there is; restore it from a copy")
    return path, begin, length


def _read(piece: Piece) -> Tensor:
    with open(piece.path, "rb") as file:
        file.seek(piece.begin)
        data = io.BytesIO(file.read(piece.length))
    found = load_weights_only(data, piece.path)
    if not isinstance(found, Tensor) or tuple(found.shape) != piece.sizes:
        raise ValueError(
            f"{piece.path} must hold a tensor of shape {piece.sizes} at byte {piece.begin}, and"
            " does not; restore the checkpoint from a copy"
        )
    return found.detach()


def _index(key: object) -> object:
    """Name and offsets that a part is stored under."""
    state = _state(key, "metadata.MetadataIndex")
    offset = state.get("offset")
    return state.get("fqn"), None if offset is None else as_sizes(offset)


def _state(value: object, name: str) -> dict[object, object]:
    """The attributes of a pickled object of one class."""
    if not isinstance(value, Record) or value.name != f"{_PACKAGE}.{name}":
        raise ValueError(f"must hold a {name.rpartition('.')[2]}, holds {shown(value)}")
    if not isinstance(value.state, dict):
        raise ValueError(f"must hold a {name.rpartition('.')[2]} with its attributes")
    return dict(value.state)


def _type(properties: object) -> str:
    state = properties.state if isinstance(properties, Record) else None
    dtype = state[0] if isinstance(state, tuple) and state else None
    if isinstance(state, dict):
        dtype = state.get("dtype")
    if not isinstance(dtype, Name):
        raise ValueError("must give the type of every tensor")
    return _DTYPES.get(dtype.dotted, dtype.dotted.removeprefix("torch."))
