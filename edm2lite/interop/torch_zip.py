"""Reads the files of ``torch.save``, ZIP archives of a pickle and its storages, as data.

The pickle is read by :mod:`edm2lite.interop.inert_pickle`: nothing is imported, called or set. No
entry of the archive is extracted; storages are views of the file, which must be stored whole, once
each, and with the checksum that the archive states.
"""

from __future__ import annotations

import itertools
import mmap
import re
import zipfile
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from edm2lite.interop.inert_pickle import Name, Record, Reference, read_pickle, shown
from edm2lite.interop.plain_records import as_mapping, kind_of
from edm2lite.interop.torch_records import strided

MAX_STORAGES = 4096
"""Limit of storages per file; a training state of DiT-XL with its optimizer has about 1500."""

_TENSOR, _PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
_FLOATS = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
}
_OTHERS = ("torch.DoubleStorage", "torch.LongStorage", "torch.IntStorage", "torch.BoolStorage")
_NAMES = frozenset(
    {_TENSOR, _PARAMETER, "collections.OrderedDict", "argparse.Namespace", *_FLOATS, *_OTHERS}
)
_ENTRY = re.compile(r"([^/\\]+)/(data\.pkl|data/\d+|version|byteorder|\.[\w/]+)")
_HEADER = 30  # bytes of an entry's header before its name


@dataclass(frozen=True)
class TorchFile:
    """The content of a file of ``torch.save``.

    Attributes:
        root: The pickled object: plain values, and records of calls.
        storages: Key -> bytes of each storage, views of the file.
    """

    root: object
    storages: Mapping[str, memoryview]

    def tensor(self, value: object, name: str) -> Tensor:
        """A copy of a tensor of floating-point numbers.

        Args:
            value: A value within :attr:`root`.
            name: Name of the tensor in error messages.

        Raises:
            ValueError: If the value is not such a tensor, or does not fit its storage. The message
                continues a sentence that begins with the name of the file.
        """
        if isinstance(value, Record) and value.name == _PARAMETER and value.args:
            value = value.args[0]
        if not isinstance(value, Record) or value.name != _TENSOR or len(value.args) < 4:
            raise ValueError(f"must hold a tensor as {name}, holds {kind_of(value)}")
        key = value.args[0].key if isinstance(value.args[0], Reference) else None
        if not isinstance(key, tuple) or len(key) != 5 or key[0] != "storage":
            raise ValueError(f"must hold a storage of torch for {name}, holds {kind_of(key)}")
        kind, number, numel = key[1], key[2], key[4]
        dtype = _FLOATS.get(kind.dotted) if isinstance(kind, Name) else None
        if dtype is None or not isinstance(number, str):
            raise ValueError(f"must hold floating-point numbers of 16 or 32 bits as {name}")
        data = self.storages.get(number)
        if data is None:
            raise ValueError(f"is damaged: the storage of {name} is missing")
        if type(numel) is not int or numel < 1 or numel * dtype.itemsize != len(data):
            raise ValueError(
                f"is damaged: {name} promises {shown(numel)} values in {len(data)} bytes"
            )
        return strided(torch.frombuffer(data, dtype=dtype), value.args, name)


def read_torch(path: str | Path, also: Collection[str] = ()) -> TorchFile:
    """The content of a file of ``torch.save``, of which nothing is executed.

    Args:
        path: The file.
        also: Classes that it may name besides those of tensors; they become records.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or asks for anything but tensors and plain values.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "net.pt"
        >>> torch.save({"weight": torch.tensor([1.0, 2.0])}, path)
        >>> file = read_torch(path)
        >>> file.tensor(file.root["weight"], "weight")
        tensor([1., 2.])
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    try:
        with path.open("rb") as opened, zipfile.ZipFile(opened) as archive:
            # copy on write: torch wants memory that could be written to, the file stays as it is
            data = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY))
            entries = _entries(archive.infolist(), data)
        root, _ = read_pickle(entries.pop("data.pkl"), _NAMES.union(also))
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} must be a file of torch.save, it is damaged or of another kind: {error}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    storages = {name[5:]: part for name, part in entries.items() if name.startswith("data/")}
    return TorchFile(root, storages)


def _entries(infos: list[zipfile.ZipInfo], data: memoryview) -> dict[str, memoryview]:
    """Name without the common folder -> bytes of every entry."""
    if len(infos) > MAX_STORAGES:
        raise ValueError(f"must hold at most {MAX_STORAGES} storages, its archive has {len(infos)}")
    entries: dict[str, memoryview] = {}
    places: list[tuple[int, int]] = []
    folders = set()
    for info in infos:
        match = _ENTRY.fullmatch(info.filename)
        if match is None or ".." in info.filename or match[2] in entries:
            raise ValueError(f"must hold the entries of torch.save, has {shown(info.filename)}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ValueError(f"must hold its entries as they are, {shown(match[2])} is compressed")
        start = _start(info, data)
        places.append((start, start + info.file_size))
        entries[match[2]] = data[start : start + info.file_size]
        folders.add(match[1])
    places.sort()
    if any(end > start for (_, end), (start, _) in itertools.pairwise(places)):
        raise ValueError("is damaged: entries of its archive overlap")
    if len(folders) != 1 or "data.pkl" not in entries:
        raise ValueError("must hold one folder with data.pkl, as torch.save writes it")
    if bytes(entries.get("byteorder", b"little")) != b"little":
        raise ValueError("must hold numbers of little-endian machines")
    for info in infos:
        part = entries[info.filename.partition("/")[2]]
        if len(part) != info.file_size or zlib.crc32(part) != info.CRC:
            raise ValueError(f"is damaged: {shown(info.filename)} has another checksum")
    return entries


def _start(info: zipfile.ZipInfo, data: memoryview) -> int:
    """Offset of the bytes of an entry, behind its header."""
    header = data[info.header_offset : info.header_offset + _HEADER]
    if len(header) < _HEADER or bytes(header[:4]) != b"PK\x03\x04":
        raise ValueError(f"is damaged: {shown(info.filename)} has no header")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return info.header_offset + _HEADER + lengths


def state_dict(file: TorchFile) -> dict[str, Tensor]:
    """The tensors of a state dict, or of the averaged weights (``ema``) in a training state.

    Args:
        file: The file.

    Raises:
        ValueError: If the file holds neither. The message continues a sentence that begins with the
            name of the file.
    """
    values = as_mapping(file.root, "state dict")
    for section in ("ema", "model"):
        if section in values:
            values = as_mapping(values[section], section)
            break
    return {str(name): file.tensor(value, shown(name)) for name, value in values.items()}
