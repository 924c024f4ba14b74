"""Weighted sums of many tensor files in one pass: read once, check, multiply.

A block of n values of each of K files is a matrix [K, n], and its sums are the product with the
[R, K] weights, so that more targets cost arithmetic but no reading. While one block is multiplied,
the next is read. Memory depends on neither K nor R: blocks shrink as they grow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edm2lite.ema.blocks import BlockReader, Part, Views
from edm2lite.ema.workers import Crew
from edm2lite.tensorfile import Header

STRIP_VALUES = 2**15  # of one file, multiplied at a time
STRIP_BYTES = 3 * 2**20  # of all of them and their sums in float32: they stay in a core's cache

Progress = Callable[[int, int], None]


def weighted_sums(
    headers: Sequence[Header],
    weights: np.ndarray,
    crew: Crew,
    *,
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> Iterator[tuple[tuple[Part, ...], Tensor]]:
    """R weighted sums of K files with the same tensors, block by block in file order.

    Args:
        headers: Of the K files; names, shapes and their order must agree.
        weights: [R, K] float64, each row with the sum 1.
        crew: Threads that read and multiply. What is added to it between two blocks runs with the
            next one; run it once more at the end.
        dtype: Floating-point type of the sums, which are made in float32.
        progress: Called with (bytes read, bytes in all) after each block.

    Yields:
        (parts, values [R, n] of ``dtype``): which tensors the columns of ``values`` belong to;
        tensors that are not floating-point come from the last file, in their own dtype. The memory
        of ``values`` is used again by the block after the next.

    Raises:
        ValueError: A file ends early, or its bytes do not match its digest (found at the end:
            what was yielded must be thrown away then).
    """
    # Files of one type lie together, so that one copy converts all of them.
    order = sorted(range(len(headers)), key=lambda k: (_kind(headers[k]), k))
    reader = BlockReader([headers[k] for k in order], len(weights))
    outs = [torch.empty(len(weights), reader.block_values, dtype=dtype) for _ in range(2)]
    multiplier = _Multiplier(weights[:, order], order.index(len(headers) - 1), outs, len(crew))
    total, done = sum(header.data_bytes for header in headers), 0
    for parts, views in reader.blocks(crew):
        values = multiplier.add(views, crew)
        crew.run()
        yield parts, values
        done += views.nbytes
        if progress is not None:
            progress(done, total)


class _Multiplier:
    """[K, n] values -> [R, n] weighted sums in ``outs``, in strips that fit the cache."""

    def __init__(self, weights: np.ndarray, reference: int, outs: list[Tensor], num_workers: int):
        self._weights = torch.from_numpy(np.ascontiguousarray(weights)).float()
        self._reference = reference
        self._outs = outs  # in turn
        self._width = min(STRIP_VALUES, max(256, STRIP_BYTES // (4 * sum(weights.shape))))
        self._strips = [_Strip(self._weights, self._width) for _ in range(num_workers)]
        self._jobs: dict[tuple[int, int], tuple[Views, list[_Job]]] = {}  # by the memory used

    def add(self, views: Views, crew: Crew) -> Tensor:
        """[R, n], which the next run of ``crew`` fills."""
        if not views.groups[0].is_floating_point():
            row = torch.cat(views.groups)[self._reference]
            return row.expand(len(self._weights), -1)
        self._outs.reverse()
        out = self._outs[0][:, : views.count]
        key = views.groups[0].data_ptr(), out.data_ptr()
        if key not in self._jobs or self._jobs[key][0] is not views:
            self._jobs[key] = views, self._cut(views, out)
        crew.add(self._multiply, self._jobs[key][1])
        return out

    def _cut(self, views: Views, out: Tensor) -> list[_Job]:
        width = math.ceil(views.count / math.ceil(views.count / self._width))  # no rest
        columns = [slice(i, i + width) for i in range(0, views.count, width)]
        return [_Job(tuple(g[:, c] for g in views.groups), out[:, c]) for c in columns]

    def _multiply(self, worker: int, job: _Job) -> None:
        values, rows, sums = self._strips[worker].shaped(job)
        for row, group in zip(rows, job.groups, strict=True):
            row.copy_(group)
        if all(group.dtype.itemsize < 4 for group in job.groups):
            torch.mm(self._weights, values, out=sums)
        else:
            # The weights sum to 1, so the sum may run over differences from one of the files: they
            # are small, and so is the rounding of their sum. Files in half precision have rounded a
            # thousand times more than the sum does.
            base = values[self._reference].clone()
            torch.addmm(base, self._weights, values.sub_(base), out=sums)
        job.out.copy_(sums)


@dataclass(frozen=True)
class _Job:
    """A strip of a block, and where its sums belong."""

    groups: tuple[Tensor, ...]  # [K_g, n]
    out: Tensor  # [R, n]


class _Strip:
    """Memory of one thread for float32 values and sums; its views are kept, as a slot's are."""

    def __init__(self, weights: Tensor, width: int):
        self._heights = weights.shape[::-1]
        self._memory = torch.empty(sum(weights.shape) * width)
        self._shape: list[torch.Size] = []
        self._views: tuple[Tensor, tuple[Tensor, ...], Tensor]

    def shaped(self, job: _Job) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Values of all files [K, n], those of each group, and sums [R, n]."""
        shape = [group.shape for group in job.groups]
        if shape != self._shape:
            count = job.out.shape[1]
            both = self._memory[: sum(self._heights) * count].view(-1, count)
            values, sums = both.split(self._heights)
            self._views = values, values.split([len(group) for group in job.groups]), sums
            self._shape = shape
        return self._views


def _kind(header: Header) -> str:
    floating = (s.dtype for s in header.tensors.values() if s.dtype.is_floating_point)
    return str(next(floating, ""))
