"""Snapshots that refer to the shards of a checkpoint where it lies, so that nothing is copied.

Such a file is a safetensors file without tensors. Its metadata names the shards, with their sizes
and the digests of their headers, the tensors in the order in which they are read, and the digest of
their bytes in this order. Whoever averages reads the shards in place and checks every byte. Two
checkpoints of a run may be sharded differently.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import xxhash

from edm2lite.strict_json import parse
from edm2lite.tensorfile import save_tensors
from edm2lite.tensorheader import Header, TensorSpec, damaged, read_header

_SHARDS, _NAMES, _CONTENT = "shards", "tensors", "content"


def gathered(path: Path, shards: Sequence[Path], names: Sequence[str] | None = None) -> Header:
    """One header for the tensors of several safetensors files.

    Args:
        path: The path of the result; no such file needs to exist.
        shards: The files.
        names: Names of the tensors in the order in which they are to be read. [default: all, as
            they lie in the files]

    Raises:
        FileNotFoundError: If a shard does not exist.
        ValueError: If a shard is damaged, two hold the same tensor, or a name is in none.

    Example:
        >>> import tempfile, torch
        >>> folder = Path(tempfile.mkdtemp())
        >>> files = [save_tensors(folder / n, {n: torch.ones(2)}, {}) for n in ("a", "b")]
        >>> header = gathered(folder / "whole", files)
        >>> [(name, spec.file) for name, spec in header.tensors.items()], header.data_bytes
        ([('a', 0), ('b', 1)], 16)
    """
    found: dict[str, TensorSpec] = {}
    for i, shard in enumerate(shards):
        tensors = read_header(shard).tensors
        for name, spec in sorted(tensors.items(), key=lambda item: item[1].offset):
            if name in found:
                raise ValueError(
                    f"every tensor must be in one shard, {name} is in {shards[found[name].file]}"
                    f" and {shard.name}; restore the checkpoint from a copy"
                )
            found[name] = TensorSpec(spec.type, spec.shape, spec.offset, i)
    if names is not None:
        if set(names) != set(found):
            odd = sorted(set(names) ^ set(found))
            raise damaged(path, f"refers to other tensors than its shards hold ({odd[0]} is one)")
        found = {name: found[name] for name in names}
    size = sum(spec.nbytes for spec in found.values())
    return Header(path, found, {}, 0, size, tuple(shards))


def save_reference(path: Path, header: Header, content: str, metadata: Mapping[str, str]) -> Path:
    """Write a snapshot that refers to the shards of a header, atomically.

    Args:
        path: The file.
        header: Result of :func:`gathered`, its tensors in the order in which they are read.
        content: The xxh3-128 of their bytes in this order.
        metadata: Metadata of the snapshot.

    Returns:
        ``path``.

    Example:
        >>> import tempfile, torch
        >>> folder = Path(tempfile.mkdtemp())
        >>> shard = save_tensors(folder / "a", {"w": torch.ones(2)}, {})
        >>> content = xxhash.xxh3_128_hexdigest(torch.ones(2).numpy())
        >>> path = save_reference(folder / "b", gathered(shard, [shard]), content, {"run": "a1"})
        >>> whole = resolved(read_header(path))
        >>> list(whole.tensors), whole.digest == content, whole.sources == (shard,)
        (['w'], True, True)
    """
    shards = [[str(p.resolve()), p.stat().st_size, _digest_of_header(p)] for p in header.sources]
    stored = {
        _SHARDS: json.dumps(shards, separators=(",", ":")),
        _NAMES: json.dumps(list(header.tensors), separators=(",", ":")),
        _CONTENT: content,
    }
    return save_tensors(path, {}, {**metadata, **stored})


def resolved(header: Header) -> Header:
    """The header of what a snapshot refers to; the header itself if it refers to nothing.

    Args:
        header: Header of a snapshot.

    Raises:
        ValueError: If a shard is missing, or is not the file that was referred to.
    """
    metadata = header.metadata
    if _SHARDS not in metadata:
        return header
    try:
        shards = [
            (Path(path), int(size), str(seal)) for path, size, seal in parse(metadata[_SHARDS])
        ]
        names = [str(name) for name in parse(metadata[_NAMES])]
        content = metadata[_CONTENT]
    except (KeyError, ValueError, TypeError) as error:
        raise damaged(header.path, "refers to shards in a way that cannot be read") from error
    for path, size, seal in shards:
        if not path.is_file():
            raise ValueError(
                f"{header.path} refers to {path}, which is gone; restore it, or move the snapshot"
                " out of the folder"
            )
        if path.stat().st_size != size or _digest_of_header(path) != seal:
            raise ValueError(
                f"{header.path} refers to {path}, which was written anew since; import the"
                " checkpoint again, or move the snapshot out of the folder"
            )
    whole = gathered(header.path, [path for path, _, _ in shards], names)
    described = {**metadata, "digest": content}
    return Header(header.path, whole.tensors, described, 0, whole.data_bytes, whole.shards)


def _digest_of_header(path: Path) -> str:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return xxhash.xxh3_128_hexdigest(file.read(min(length, path.stat().st_size)))
