"""Reads many tensor files side by side, one block of every file at a time, and hashes them.

The files hold the same tensors. Consecutive tensors that have one type in each file form a span,
which is cut into blocks regardless of where a tensor ends. Blocks are read into slots of memory
that are reused in turn. The views of a slot are created once: slicing between two reads would hold
Python's lock, and a core that finds the lock taken goes to sleep.
"""

from __future__ import annotations

import io
import resource
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import xxhash
from numpy.typing import NDArray

from edm2lite.ema.casts import STORAGE
from edm2lite.ema.workers import WorkerPool
from edm2lite.tensorfile import Header, check_digest

BLOCK_VALUES = 3 * 2**16
"""Largest block of one file, in values: 384 KiB stay in a core's cache while read and hashed."""
BLOCK_BYTES = 16 * 2**20
"""Memory of a block of all files and all targets together."""
_SLOTS = 2  # one block is summed while the next is read


@dataclass(frozen=True)
class Part:
    """The part of a tensor that lies in one block.

    Attributes:
        name: Name of the tensor.
        begin: Index of its first value in the flattened tensor.
        first: First column of the block that belongs to it.
        last: Column after the last one that belongs to it.
    """

    name: str
    begin: int
    first: int
    last: int


@dataclass(frozen=True)
class BlockValues:
    """Views of the values that a block holds, for every file.

    Attributes:
        count: Values per file.
        groups: Values [K_g, count] of consecutive files that share a type, as they are stored.
        types: Type of each group, by its name in the header.
        rows: Bytes of each file.
    """

    count: int
    groups: tuple[NDArray[np.generic], ...]
    types: tuple[str, ...]
    rows: tuple[memoryview, ...]

    @property
    def nbytes(self) -> int:
        """Size of the block in bytes."""
        return sum(len(row) for row in self.rows)


@dataclass(frozen=True)
class _Span:
    """Tensors that are adjacent in every file, and have one type in each file."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    types: tuple[str, ...]  # of each file
    places: tuple[tuple[int, int], ...]  # of each file: index of its source, offset of the span


class BlockReader:
    """Blocks of K files in file order, hashed as they are read.

    Args:
        headers: Headers of the K files; names, shapes and their order must agree.
        num_targets: Number of sums computed from each block; they share the memory of a block.
        multiple: Every block but the last one of a span holds a multiple of so many values.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from edm2lite.tensorfile import read_header, save_tensors
        >>> folder = Path(tempfile.mkdtemp())
        >>> paths = [save_tensors(folder / f"{k}", {"w": torch.ones(5) * k}, {}) for k in (1, 2)]
        >>> reader = BlockReader([read_header(path) for path in paths], num_targets=1)
        >>> with WorkerPool(1) as pool:
        ...     [(parts[0].name, values.groups[0][:, 0]) for parts, values in reader.blocks(pool)]
        [('w', array([1., 2.], dtype=float32))]
    """

    def __init__(self, headers: Sequence[Header], num_targets: int, multiple: int = 1):
        self.headers = headers
        self._digests = [xxhash.xxh3_128() for _ in headers]
        fitting = BLOCK_BYTES // (4 * (len(headers) + num_targets))
        self.block_values = max(1, min(BLOCK_VALUES, max(1024, fitting)) // multiple) * multiple
        self._spans = list(_spans(headers))
        widest = min(self.block_values, max((sum(s.sizes) for s in self._spans), default=0))
        item = max((STORAGE[t].itemsize for span in self._spans for t in span.types), default=1)
        self._slots = deque(_Slot(len(headers), widest * item) for _ in range(_SLOTS))

    def blocks(self, pool: WorkerPool) -> Iterator[tuple[tuple[Part, ...], BlockValues]]:
        """All blocks, one after the other.

        The tasks that read the next block are added to ``pool`` and run with the caller's own.

        Args:
            pool: Workers that read. Run it once between two blocks.

        Yields:
            The parts of the block and its values. Their memory is overwritten by the run of
            ``pool`` after the next.

        Raises:
            ValueError: If the bytes of a file do not match its digest. This is known only after
                the last block: discard what was read then. If a file ends early, the run of
                ``pool`` raises.
        """
        _allow_open_files(sum(len(h.sources) for h in self.headers))
        with ExitStack() as stack:
            sources = [
                [stack.enter_context(open(path, "rb", buffering=0)) for path in h.sources]
                for h in self.headers
            ]
            ready: tuple[tuple[Part, ...], BlockValues] | None = None
            for span in self._spans:
                files = [of[i] for of, (i, _) in zip(sources, span.places, strict=True)]
                offsets: Sequence[int] | None = [offset for _, offset in span.places]
                for parts in _parts(span, self.block_values):
                    values = self._slots[0].values(parts[-1].last, span.types)
                    self._slots.rotate(-1)
                    pool.add(partial(self._read, files, values, offsets), range(len(files)))
                    offsets = None
                    if ready is None:
                        pool.run()
                    else:
                        yield ready
                    ready = parts, values
            if ready is not None:
                yield ready
        for header, digest in zip(self.headers, self._digests, strict=True):
            check_digest(header, digest.hexdigest())

    def _read(
        self,
        files: Sequence[io.FileIO],
        values: BlockValues,
        offsets: Sequence[int] | None,
        worker: int,
        k: int,
    ) -> None:
        file, row = files[k], values.rows[k]
        if offsets is not None:
            file.seek(offsets[k])
        count = file.readinto(row)
        while count < len(row):
            more = file.readinto(row[count:])
            if not more:
                raise ValueError(f"{file.name} ended early; it changed while being read")
            count += more
        self._digests[k].update(row)


class _Slot:
    """Memory for one block of every file."""

    def __init__(self, num_files: int, nbytes: int):
        self._memory = np.empty((num_files, nbytes), np.uint8)
        self._types: tuple[str, ...] = ()
        self._values = BlockValues(0, (), (), ())

    def values(self, count: int, types: tuple[str, ...]) -> BlockValues:
        """Views of ``count`` values per file; those of the previous call if they fit."""
        if (self._values.count, self._types) != (count, types):
            self._types, self._values = types, self._views(count, types)
        return self._values

    def _views(self, count: int, types: tuple[str, ...]) -> BlockValues:
        groups, kinds, begin = [], [], 0
        for k, kind in enumerate(types):
            if types[k + 1 : k + 2] != (kind,):
                nbytes = count * STORAGE[kind].itemsize
                groups.append(self._memory[begin : k + 1, :nbytes].view(STORAGE[kind]))
                kinds.append(kind)
                begin = k + 1
        rows = (
            memory[: count * STORAGE[kind].itemsize].data
            for memory, kind in zip(self._memory, types, strict=True)
        )
        return BlockValues(count, tuple(groups), tuple(kinds), tuple(rows))


def _spans(headers: Sequence[Header]) -> Iterator[_Span]:
    """The spans of all tensors, in the order of the first file."""
    names: list[str] = []
    types: tuple[str, ...] = ()
    places: tuple[tuple[int, int], ...] = ()
    ends: tuple[tuple[int, int], ...] = ()
    tensors = headers[0].tensors

    def span() -> _Span:
        return _Span(tuple(names), tuple(tensors[n].numel for n in names), types, places)

    for name in tensors:
        specs = [header.tensors[name] for header in headers]
        own_types = tuple(spec.type for spec in specs)
        starts = tuple((spec.file, spec.offset) for spec in specs)
        if names and (own_types != types or starts != ends):
            yield span()
            names.clear()
        if not names:
            types, places = own_types, starts
        names.append(name)
        ends = tuple((spec.file, spec.offset + spec.nbytes) for spec in specs)
    if names:
        yield span()


def _parts(span: _Span, block_values: int) -> Iterator[tuple[Part, ...]]:
    """The parts of each block of a span."""
    parts: list[Part] = []
    used = 0
    for name, size in zip(span.names, span.sizes, strict=True):
        begin = 0
        while begin < size:
            count = min(size - begin, block_values - used)
            parts.append(Part(name, begin, used, used + count))
            begin, used = begin + count, used + count
            if used == block_values:
                yield tuple(parts)
                parts, used = [], 0
    if parts:
        yield tuple(parts)


def _allow_open_files(count: int) -> None:
    """Raise the limit of open files of this process to ``count`` and some more, if possible."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    required = count + 256
    if soft != resource.RLIM_INFINITY and soft < required:
        limit = required if hard == resource.RLIM_INFINITY else min(required, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
