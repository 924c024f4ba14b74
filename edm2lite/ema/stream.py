"""Weighted sums of many tensor files in one pass: read once, check, multiply.

The K files are read side by side, block by block, in one thread that also computes their digests;
meanwhile another turns the block before into R sums. A block of n values of every file is a matrix
[K, n], and its sums are the product with the [R, K] weights, so that more targets cost arithmetic
but no reading. Memory depends on neither K nor R: blocks shrink as they grow.
"""

from __future__ import annotations

import io
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import xxhash
from torch import Tensor

from edm2lite.tensorfile import Header, TensorSpec, check_digest

BLOCK_BYTES = 32 * 2**20  # of all files and targets together; three blocks are alive at a time
CACHE_BYTES = 2**21  # float32 values multiplied at a time stay in a core's cache

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Piece:
    """Consecutive values of one tensor: ``count`` from ``begin`` on."""

    name: str
    begin: int
    count: int


def weighted_sums(
    headers: Sequence[Header], weights: np.ndarray, progress: Progress | None = None
) -> Iterator[tuple[str, Tensor]]:
    """R weighted sums of K files with the same tensors, piece by piece in file order.

    Args:
        headers: Of the K files; names, shapes and their order must agree.
        weights: [R, K] float64, each row with the sum 1.
        progress: Called with (bytes read, bytes in all) after each block.

    Yields:
        (name, values [R, n] float32) in consecutive pieces of the flattened tensor; a tensor that
        is not floating-point comes from the last file, in its own dtype. The memory of ``values``
        is used again two pieces later.

    Raises:
        ValueError: A file ends early, or its bytes do not match its digest (found at the end:
            what was yielded must be thrown away then).
    """
    # Files of one type lie together, so that one copy converts all of them.
    order = sorted(range(len(headers)), key=lambda k: (_kind(headers[k]), k))
    last = len(headers) - 1
    reader = _Reader([headers[k] for k in order], len(weights))
    multiplier = _Multiplier(weights[:, order], order.index(last))
    total, done = sum(header.data_bytes for header in headers), 0
    with reader, multiplier, ThreadPoolExecutor(1) as pool:
        following = pool.submit(reader.read, 0)
        for i, piece in enumerate(reader.pieces):
            rows = following.result()
            if i + 1 < len(reader.pieces):
                following = pool.submit(reader.read, i + 1)
            yield piece.name, multiplier(rows)
            done += sum(row.nbytes for group in rows for row in group)
            if progress is not None:
                progress(done, total)
        reader.check()


class _Reader:
    """Reads the same piece of every file into buffers that are used in turn, and hashes it."""

    def __init__(self, headers: Sequence[Header], num_targets: int):
        self.headers = headers
        self._digests = [xxhash.xxh3_128() for _ in headers]
        size = max(1024, BLOCK_BYTES // (4 * (len(headers) + num_targets)))
        self.pieces = [
            Piece(name, begin, min(size, spec.numel - begin))
            for name, spec in headers[0].tensors.items()
            for begin in range(0, spec.numel, size)
        ]
        widest = max((piece.count for piece in self.pieces), default=0)
        item = max((s.dtype.itemsize for h in headers for s in h.tensors.values()), default=1)
        self._buffers = [
            torch.empty(len(headers), widest * item, dtype=torch.uint8) for _ in range(2)
        ]

    def __enter__(self) -> _Reader:
        _allow_open_files(len(self.headers))
        self._stack = ExitStack()
        self._files: list[io.FileIO] = []
        for header in self.headers:
            file = self._stack.enter_context(open(header.path, "rb", buffering=0))
            file.seek(header.data_start)
            self._files.append(file)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def read(self, i: int) -> list[Tensor]:
        """Values of piece i, [K_g, n] for each group of files that store it in one dtype."""
        piece, buffer = self.pieces[i], self._buffers[i % 2]
        groups: list[Tensor] = []
        begin = 0
        specs = [header.tensors[piece.name] for header in self.headers]
        for k, spec in enumerate(specs):
            self._fill(k, buffer[k], piece, spec)
            if k + 1 == len(specs) or specs[k + 1].dtype != spec.dtype:
                rows = buffer[begin : k + 1].view(spec.dtype)
                groups.append(rows[:, : piece.count])
                begin = k + 1
        return groups

    def check(self) -> None:
        for header, digest in zip(self.headers, self._digests, strict=True):
            check_digest(header, digest.hexdigest())

    def _fill(self, k: int, row: Tensor, piece: Piece, spec: TensorSpec) -> None:
        view = row.numpy()[: piece.count * spec.dtype.itemsize].data
        rest = view
        while rest:
            got = self._files[k].readinto(rest)
            if not got:
                raise ValueError(f"{self.headers[k].path} ended early; it changed while being read")
            rest = rest[got:]
        self._digests[k].update(view)


class _Multiplier:
    """[K, n] values -> [R, n] weighted sums, in strips that fit the cache, on every core."""

    def __init__(self, weights: np.ndarray, reference: int):
        self._weights = torch.from_numpy(np.ascontiguousarray(weights)).float()
        self._reference = reference
        width = max(256, CACHE_BYTES // (4 * weights.shape[1]))
        self._strips = [
            torch.empty(weights.shape[1], width) for _ in range(_num_workers(len(weights)))
        ]
        self._outs = [torch.empty(0), torch.empty(0)]  # in turn
        self._half = False

    def __enter__(self) -> _Multiplier:
        # One thread per strip, and none below it: torch's own threads wait for one another after
        # every operation, which stalls them whenever the reader takes a core.
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(
            len(self._strips), initializer=torch.set_num_threads, initargs=(1,)
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown()
        torch.set_num_threads(self._threads)

    def __call__(self, groups: Sequence[Tensor]) -> Tensor:
        count, num_targets = groups[0].shape[1], len(self._weights)
        if not groups[0].is_floating_point():
            return torch.cat(list(groups))[self._reference].expand(num_targets, -1)
        self._half = all(group.dtype.itemsize < 4 for group in groups)
        self._outs.reverse()
        if self._outs[0].numel() < num_targets * count:
            self._outs[0] = torch.empty(num_targets * count)
        out = self._outs[0][: num_targets * count].view(num_targets, count)
        edges = [count * i // len(self._strips) for i in range(len(self._strips) + 1)]
        list(self._pool.map(partial(self._span, groups, out), self._strips, edges, edges[1:]))
        return out

    def _span(
        self, groups: Sequence[Tensor], out: Tensor, strip: Tensor, first: int, last: int
    ) -> None:
        for begin in range(first, last, strip.shape[1]):
            end = min(begin + strip.shape[1], last)
            values = strip[:, : end - begin]
            row = 0
            for group in groups:
                values[row : row + len(group)].copy_(group[:, begin:end])
                row += len(group)
            if self._half:
                torch.mm(self._weights, values, out=out[:, begin:end])
                continue
            # The weights sum to 1, so the sum may run over differences from one of the files: they
            # are small, and so is the rounding of their sum. Files in half precision have rounded
            # a thousand times more than the sum does.
            base = values[self._reference].clone()
            torch.addmm(base, self._weights, values.sub_(base), out=out[:, begin:end])


def _num_workers(num_targets: int) -> int:
    """Threads that multiply: with few targets the reader is as busy as they are."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min(8, cores if num_targets >= 4 else cores - 1))


def _kind(header: Header) -> str:
    floating = (s.dtype for s in header.tensors.values() if s.dtype.is_floating_point)
    return str(next(floating, ""))


def _allow_open_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
