"""Weighted sums of many tensor files in one pass: each file is read once, checked, and multiplied.

A block of n values of each of K files is a matrix [K, n], and its sums are products with the R rows
of weights, so that more targets cost arithmetic but no reading. While one block is multiplied, the
next is read. Memory depends on neither K nor R: blocks shrink as these grow.

The bits of a sum depend on neither R nor the number of threads: how a product of matrices rounds
depends on their shapes, so every row of weights is multiplied on its own, with tiles of a block
whose limits depend on K alone. (A product of all rows at once is faster by a third for R = 31.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edm2lite.ema.blocks import BlockReader, BlockValues, Part
from edm2lite.ema.casts import STORAGE, narrow, widen
from edm2lite.ema.workers import WorkerPool
from edm2lite.tensorfile import Header

STRIP_VALUES = 2**15
"""Largest strip of a block that is multiplied at a time, in values of one file."""
STRIP_BYTES = 3 * 2**20
"""Memory of a strip of all files and its sums in float32; it stays in a core's cache."""
TILE_VALUES = 2**12
"""Largest part of a strip that is multiplied by a row of weights at a time, in values of one file.

Blocks and strips begin at multiples of a tile."""
_ALIGNED, _APART = 16, 80
"""In float32: rows begin at such multiples, and so far apart that they do not share cache lines."""

Floats = NDArray[np.float32]
Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes to read in total."""


def weighted_sums(
    headers: Sequence[Header],
    weights: NDArray[np.float64],
    pool: WorkerPool,
    *,
    type: str = "F32",
    progress: Progress | None = None,
) -> Iterator[tuple[tuple[Part, ...], NDArray[np.generic]]]:
    """R weighted sums of K files that hold the same tensors, block by block in file order.

    Sums are accumulated in float32. Tensors that are not floating-point are taken from the last
    file, as they are.

    Args:
        headers: Headers of the K files; names, shapes and their order must agree.
        weights: [R, K] float64; each row sums to 1.
        pool: Workers that read and multiply. Tasks added to it between two blocks run with the
            next block; run it once more at the end.
        type: Floating-point type of the sums, by its name in a header.
        progress: Called with the bytes read and the total after each block.

    Yields:
        (parts, values [R, n] as stored): the tensors that the columns belong to, and their sums.
        The memory of ``values`` is reused by the block after the next.

    Raises:
        ValueError: If a file ends early, or its bytes do not match its digest. The latter is known
            only after the last block: discard what was yielded then.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from edm2lite.tensorfile import read_header, save_tensors
        >>> folder = Path(tempfile.mkdtemp())
        >>> paths = [save_tensors(folder / f"{k}", {"w": torch.ones(2) * k}, {}) for k in (1, 2)]
        >>> headers = [read_header(path) for path in paths]
        >>> with WorkerPool(1) as pool:
        ...     ((parts, values),) = weighted_sums(headers, np.array([[0.25, 0.75]]), pool)
        >>> parts[0].name, values
        ('w', array([[1.75, 1.75]], dtype=float32))
    """
    # Files of one type lie together, so that one copy converts all of them.
    order = sorted(range(len(headers)), key=lambda k: (_kind(headers[k]), k))
    reader = BlockReader([headers[k] for k in order], len(weights), _tile(len(headers)))
    outs = [np.empty((len(weights), reader.block_values), STORAGE[type]) for _ in range(2)]
    reference = order.index(len(headers) - 1)
    multiplier = _Multiplier(weights[:, order], reference, outs, type, len(pool))
    total, done = sum(header.data_bytes for header in headers), 0
    for parts, block in reader.blocks(pool):
        values = multiplier.add(block, pool)
        pool.run()
        yield parts, values
        done += block.nbytes
        if progress is not None:
            progress(done, total)


def _tile(num_files: int) -> int:
    """Number of values in a tile: it fits the cache, and depends on the number of files alone."""
    return max(256, min(TILE_VALUES, STRIP_BYTES // (4 * num_files) // 256 * 256))


class _Multiplier:
    """[K, n] values -> [R, n] weighted sums in ``outs``, in strips that fit the cache."""

    def __init__(
        self,
        weights: NDArray[np.float64],
        reference: int,
        outs: list[NDArray[np.generic]],
        type: str,
        num_workers: int,
    ):
        self._weights = np.ascontiguousarray(weights, np.float32)
        self._type = type
        self._reference = reference  # index of the file that the others differ little from
        self._outs = outs  # used in turn
        self._tile = _tile(weights.shape[1])
        fitting = min(STRIP_VALUES, STRIP_BYTES // (4 * sum(weights.shape)))
        self._width = max(1, fitting // self._tile) * self._tile
        self._strips = [_Strip(self._weights, self._tile, self._width) for _ in range(num_workers)]
        self._jobs: dict[tuple[int, int], tuple[BlockValues, list[_Job]]] = {}  # by memory used

    def add(self, block: BlockValues, pool: WorkerPool) -> NDArray[np.generic]:
        """[R, n] sums of a block, which the next run of ``pool`` fills in."""
        if "F" not in block.types[0]:
            row = np.concatenate(block.groups)[self._reference]
            return np.broadcast_to(row, (len(self._weights), len(row)))
        self._outs.reverse()
        out = self._outs[0][:, : block.count]
        key = block.groups[0].ctypes.data, out.ctypes.data
        if key not in self._jobs or self._jobs[key][0] is not block:
            self._jobs[key] = block, self._cut(block, out)
        pool.add(self._multiply, self._jobs[key][1])
        return out

    def _cut(self, block: BlockValues, out: NDArray[np.generic]) -> list[_Job]:
        width = math.ceil(block.count / math.ceil(block.count / self._width))  # about equal strips
        width = math.ceil(width / self._tile) * self._tile
        columns = [slice(i, i + width) for i in range(0, block.count, width)]
        groups = (tuple(group[:, c] for group in block.groups) for c in columns)
        return [_Job(g, block.types, out[:, c]) for g, c in zip(groups, columns, strict=True)]

    def _multiply(self, worker: int, job: _Job) -> None:
        strip = self._strips[worker]
        strip.fit(job)
        for row, group, kind in zip(strip.rows, job.groups, job.types, strict=True):
            widen(row, group, kind)
        if all(group.dtype.itemsize < 4 for group in job.groups):
            strip.multiply()
        else:
            # The weights sum to 1, so the sum may run over differences from one of the files: they
            # are small, and so is the rounding of their sum. For files in half precision this is
            # not needed: their own rounding is a thousand times that of the sum.
            base = strip.values[self._reference].copy()
            strip.values -= base
            strip.multiply()
            strip.sums += base
        narrow(job.out, strip.sums, self._type)


@dataclass(frozen=True)
class _Job:
    """A strip of a block, and where its sums belong."""

    groups: tuple[NDArray[np.generic], ...]  # [K_g, n]
    types: tuple[str, ...]
    out: NDArray[np.generic]  # [R, n]


class _Strip:
    """Memory of one worker for the float32 values and sums of a strip; its views are reused.

    Attributes:
        values: [K, n] values of all files.
        rows: The parts of ``values`` that belong to each group of files.
        sums: [R, n] sums.
    """

    values: Floats
    rows: list[Floats]
    sums: Floats

    def __init__(self, weights: Floats, tile: int, width: int):
        self._weights, self._tile = weights[:, None, :], tile  # [R, 1, K]: a product for each row
        self._memory = _aligned(sum(weights.shape), width + _APART)
        self._shape: list[tuple[int, ...]] = []

    def fit(self, job: _Job) -> None:
        """Set the views to the size of a strip."""
        shape = [group.shape for group in job.groups]
        if shape == self._shape:
            return
        self._shape = shape
        count, num_files = job.out.shape[1], self._weights.shape[2]
        whole = count - count % self._tile
        self.values, self.sums = np.split(self._memory[:, :count], [num_files])
        self.rows = np.split(self.values, np.cumsum([len(group) for group in job.groups])[:-1])
        # [tiles, 1, K, tile] and [tiles, R, 1, tile], then the tile that is not whole, if any
        parts = [(whole // self._tile, slice(0, whole)), (1, slice(whole, count))]
        self._products = [
            (
                self.values[:, c].reshape(num_files, n, -1).swapaxes(0, 1)[:, None],
                self.sums[:, c].reshape(len(self.sums), n, -1).swapaxes(0, 1)[:, :, None],
            )
            for n, c in parts
            if c.start < c.stop
        ]

    def multiply(self) -> None:
        """Fill in the sums, tile by tile, so that a tile stays in the cache for all rows."""
        for values, sums in self._products:
            np.matmul(self._weights, values, out=sums, order="C")


def _aligned(num_rows: int, width: int) -> Floats:
    """Uninitialized memory [num_rows, width], every row of which begins at a cache line."""
    width = -(-width // _ALIGNED) * _ALIGNED
    memory = np.empty(num_rows * width + _ALIGNED, np.float32)
    begin = -memory.ctypes.data // memory.itemsize % _ALIGNED
    return memory[begin : begin + num_rows * width].reshape(num_rows, width)


def _kind(header: Header) -> str:
    """Name of the floating-point type of a file; empty if it has none."""
    return next((s.type for s in header.tensors.values() if s.is_floating_point), "")
