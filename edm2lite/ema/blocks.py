"""Reads many tensor files side by side: one block of every file at a time, hashed on its way.

The files hold the same tensors. Tensors that follow one another with one dtype per file are one
run, cut into blocks without regard to where a tensor ends. They are read into slots of memory
that are used in turn and whose views are made once: slicing between two reads would hold
Python's lock, and a core that finds it taken goes to sleep.
"""

from __future__ import annotations

import io
import resource
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
import xxhash
from torch import Tensor

from edm2lite.ema.workers import Crew
from edm2lite.tensorfile import Header, check_digest

BLOCK_VALUES = 3 * 2**16  # of one file; 384 KiB stay in a core's cache while read and hashed
BLOCK_BYTES = 16 * 2**20  # of all files and targets together
_SLOTS = 2  # one being summed, one being read


@dataclass(frozen=True)
class Part:
    """Values ``begin`` on of one tensor, which are columns ``first`` to ``last`` of a block."""

    name: str
    begin: int
    first: int
    last: int


@dataclass(frozen=True)
class Views:
    """The first ``count`` values of every file in a slot."""

    count: int
    groups: tuple[Tensor, ...]  # [K_g, count], of consecutive files of one dtype
    rows: tuple[memoryview, ...]  # bytes of each file

    @property
    def nbytes(self) -> int:
        return sum(len(row) for row in self.rows)


@dataclass(frozen=True)
class _Run:
    """Tensors that lie one behind the other in every file, each file with one dtype."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]  # of each file
    offsets: tuple[int, ...]  # of the first byte in each file


class BlockReader:
    """Blocks of K files in file order, hashed on their way.

    Args:
        headers: Of the files; names, shapes and their order must agree.
        num_targets: Sums that will be made of each block; they share the memory of a block.
    """

    def __init__(self, headers: Sequence[Header], num_targets: int):
        self.headers = headers
        self._digests = [xxhash.xxh3_128() for _ in headers]
        shared = BLOCK_BYTES // (4 * (len(headers) + num_targets))
        self.block_values = min(BLOCK_VALUES, max(1024, shared))
        self._runs = list(_runs(headers))
        widest = min(self.block_values, max((sum(r.sizes) for r in self._runs), default=0))
        item = max((d.itemsize for run in self._runs for d in run.dtypes), default=1)
        self._slots = deque(_Slot(len(headers), widest * item) for _ in range(_SLOTS))

    def blocks(self, crew: Crew) -> Iterator[tuple[tuple[Part, ...], Views]]:
        """One after the other; the next one is read by the run of ``crew`` that follows.

        The memory of a block is used again by the run after that.

        Raises:
            ValueError: Its bytes do not match the digest of a file (found at the end: what was read
                before must be thrown away then). A run of ``crew`` raises if a file ends early.
        """
        _allow_open_files(len(self.headers))
        with ExitStack() as stack:
            files = [stack.enter_context(open(h.path, "rb", buffering=0)) for h in self.headers]
            ready: tuple[tuple[Part, ...], Views] | None = None
            for run in self._runs:
                offsets: Sequence[int] | None = run.offsets
                for parts in _parts(run, self.block_values):
                    views = self._slots[0].first(parts[-1].last, run.dtypes)
                    self._slots.rotate(-1)
                    crew.add(partial(self._read, files, views, offsets), range(len(files)))
                    offsets = None
                    if ready is None:
                        crew.run()
                    else:
                        yield ready
                    ready = parts, views
            if ready is not None:
                yield ready
        for header, digest in zip(self.headers, self._digests, strict=True):
            check_digest(header, digest.hexdigest())

    def _read(
        self,
        files: Sequence[io.FileIO],
        views: Views,
        offsets: Sequence[int] | None,
        worker: int,
        k: int,
    ) -> None:
        file, row = files[k], views.rows[k]
        if offsets is not None:
            file.seek(offsets[k])
        got = file.readinto(row)
        while got < len(row):
            more = file.readinto(row[got:])
            if not more:
                raise ValueError(f"{file.name} ended early; it changed while being read")
            got += more
        self._digests[k].update(row)


class _Slot:
    """Memory for one block of every file."""

    def __init__(self, num_files: int, nbytes: int):
        self._memory = torch.empty(num_files, nbytes, dtype=torch.uint8)
        self._dtypes: tuple[torch.dtype, ...] = ()
        self._views = Views(0, (), ())

    def first(self, count: int, dtypes: tuple[torch.dtype, ...]) -> Views:
        """Views of ``count`` values per file; those of the call before, where they fit."""
        if (self._views.count, self._dtypes) != (count, dtypes):
            self._dtypes, self._views = dtypes, self._make(count, dtypes)
        return self._views

    def _make(self, count: int, dtypes: tuple[torch.dtype, ...]) -> Views:
        groups, begin = [], 0
        for k, dtype in enumerate(dtypes):
            if dtypes[k + 1 : k + 2] != (dtype,):
                groups.append(self._memory[begin : k + 1].view(dtype)[:, :count])
                begin = k + 1
        rows = (
            memory.numpy().data[: count * dtype.itemsize]
            for memory, dtype in zip(self._memory, dtypes, strict=True)
        )
        return Views(count, tuple(groups), tuple(rows))


def _runs(headers: Sequence[Header]) -> Iterator[_Run]:
    """All tensors, in the order of the first file."""
    names: list[str] = []
    dtypes: tuple[torch.dtype, ...] = ()
    offsets: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    tensors = headers[0].tensors

    def run() -> _Run:
        return _Run(tuple(names), tuple(tensors[n].numel for n in names), dtypes, offsets)

    for name in tensors:
        specs = [header.tensors[name] for header in headers]
        here = tuple(spec.dtype for spec in specs)
        starts = tuple(spec.offset for spec in specs)
        if names and (here != dtypes or starts != ends):
            yield run()
            names.clear()
        if not names:
            dtypes, offsets = here, starts
        names.append(name)
        ends = tuple(spec.offset + spec.nbytes for spec in specs)
    if names:
        yield run()


def _parts(run: _Run, block_values: int) -> Iterator[tuple[Part, ...]]:
    """The parts of each block of a run."""
    parts: list[Part] = []
    used = 0
    for name, size in zip(run.names, run.sizes, strict=True):
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
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
