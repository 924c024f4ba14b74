"""The order in which a run sees the images: rows as functions of (seed, position in the run).

A position counts the images that the run has seen. Nothing else enters, neither the number of
processes nor where the run was interrupted.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edm2lite.seeding import Purpose, rng


class Order(Protocol):
    """A function from positions in the run to rows of the data set."""

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row at each position, [N]; the positions ascend without gaps."""


class Stream:
    """Some rows, again and again, in a new order each time.

    Args:
        members: [M] rows of the data set.
        seed: Seed of the run.
        stream: Index of this stream among several, whose orders are unrelated.
        num_streams: Number of these streams.
        purpose: What the order is drawn for.

    Example:
        >>> stream = Stream(np.array([10, 11, 12]), seed=0)
        >>> rows = stream.rows(np.arange(6))
        >>> sorted(rows[:3].tolist()), sorted(rows[3:].tolist())
        ([10, 11, 12], [10, 11, 12])
    """

    def __init__(
        self,
        members: NDArray[np.int64],
        seed: int,
        stream: int = 0,
        num_streams: int = 1,
        purpose: Purpose = Purpose.ORDER,
    ):
        self.members, self._purpose = members, purpose
        self._seed, self._stream, self._num_streams = seed, stream, num_streams
        self._permuted = lru_cache(maxsize=2)(self._new)

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row at each position, [N]."""
        epochs, offsets = np.divmod(positions, len(self.members))
        out = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            out[here] = self._permuted(int(epoch))[offsets[here]]
        return out

    def _new(self, epoch: int) -> NDArray[np.int64]:
        index = epoch * self._num_streams + self._stream
        return self.members[rng(self._seed, index, self._purpose).permutation(len(self.members))]


class Alternating:
    """Two orders in turn: even positions show the rows of the first, odd ones of the second.

    Each advances by one for two positions of the run, so every batch of even size is half of each.

    Args:
        first: Order of the rows before ``offset``.
        second: Order of the rows from ``offset`` on, which it counts from 0.
        offset: First row of the second.

    Example:
        >>> first, second = (Stream(np.arange(n), seed=0) for n in (2, 3))
        >>> rows = Alternating(first, second, offset=2).rows(np.arange(12))
        >>> sorted(rows[::2].tolist()), sorted(rows[1::2].tolist())
        ([0, 0, 0, 1, 1, 1], [2, 2, 3, 3, 4, 4])
    """

    def __init__(self, first: Order, second: Order, offset: int):
        self._first, self._second, self._offset = first, second, offset

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row at each position, [N]."""
        out, is_second = np.empty(len(positions), np.int64), positions % 2 == 1
        if not is_second.all():
            out[~is_second] = self._first.rows(positions[~is_second] // 2)
        if is_second.any():
            out[is_second] = self._offset + self._second.rows(positions[is_second] // 2)
        return out


class Balanced:
    """Every class equally often: C positions in a row show each of the C classes once.

    The images of a class take turns, in a new order each time all have been shown.

    Args:
        labels: [N] class indices; images without a class (-1) are not shown.
        seed: Seed of the run.

    Raises:
        ValueError: If there are no class indices.

    Example:
        >>> labels = np.array([0, 0, 0, 0, 1])
        >>> labels[Balanced(labels, seed=0).rows(np.arange(8))].tolist()
        [1, 0, 1, 0, 0, 1, 1, 0]
    """

    def __init__(self, labels: NDArray[np.int64] | None, seed: int):
        if labels is None or labels.ndim != 1:
            found = "no labels" if labels is None else "label vectors"
            raise ValueError(f"data.class_balanced must have class indices, found {found}")
        by_class = np.argsort(labels, kind="stable")
        classes, starts = np.unique(labels[by_class], return_index=True)
        members = [
            m for c, m in zip(classes, np.split(by_class, starts[1:]), strict=True) if c >= 0
        ]
        count = len(members) + 1
        self._classes = Stream(np.arange(len(members)), seed, 0, count)
        self._images = [Stream(m, seed, i + 1, count) for i, m in enumerate(members)]

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row at each position, [N]."""
        turns = positions // len(self._images)
        classes = self._classes.rows(positions)
        pairs = zip(classes, turns, strict=True)
        return np.array([self._images[c].rows(np.array([t]))[0] for c, t in pairs])


class Bucketed:
    """Every global batch from images of one size.

    The images of a bucket form a stream that is cut into batches. The end of one pass over them and
    the beginning of the next share a batch, so no image is left out or shown more often than
    another. An epoch consists of the batches that become full in one pass over the data, in an
    order drawn from the seed: at every step the next bucket is drawn with probability proportional
    to the number of batches that it has left.

    Args:
        sizes: [N, 2] heights and widths of the images.
        seed: Seed of the run.
        batch_size: Global batch size.

    Example:
        >>> sizes = np.array([[8, 8]] * 5 + [[8, 12]] * 3)
        >>> order = Bucketed(sizes, seed=0, batch_size=4)
        >>> [sizes[order.rows(np.arange(4 * k, 4 * k + 4))].tolist()[0] for k in range(4)]
        [[8, 8], [8, 12], [8, 8], [8, 8]]
    """

    def __init__(self, sizes: NDArray[np.int64], seed: int, batch_size: int):
        self.sizes, members = np.unique(sizes, axis=0, return_inverse=True)
        members = members.reshape(-1)
        self._seed, self._batch_size = seed, batch_size
        self._counts = np.bincount(members).astype(np.int64)
        count = len(self._counts) + 1  # stream 0 is the order of the batches
        self._streams = [
            Stream(np.flatnonzero(members == b), seed, b + 1, count) for b in range(count - 1)
        ]
        self._epoch_order = lru_cache(maxsize=2)(self._new_epoch)

    def rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row at each position, [N]; all positions lie in one batch."""
        batch = int(positions[0]) // self._batch_size
        bucket, turn = self.batch(batch)
        within = positions - batch * self._batch_size
        return self._streams[bucket].rows(turn * self._batch_size + within)

    def batch(self, number: int) -> tuple[int, int]:
        """Index of the bucket of a global batch, and index of the batch within that bucket."""
        epoch = self._epoch_of(number)
        done = self._full(epoch)
        order = self._epoch_order(epoch)
        offset = number - int(done.sum())
        bucket = int(order[offset])
        return bucket, int(done[bucket]) + int((order[:offset] == bucket).sum())

    def _full(self, epochs: int) -> NDArray[np.int64]:
        """Batches of each bucket that are full after some passes over the data."""
        return epochs * self._counts // self._batch_size

    def _epoch_of(self, number: int) -> int:
        """The pass in which a batch becomes full."""
        low, high = 0, 1
        while self._full(high).sum() <= number:
            high *= 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._full(middle).sum() <= number else (low, middle)
        return low

    def _new_epoch(self, epoch: int) -> NDArray[np.int64]:
        num_batches = self._full(epoch + 1) - self._full(epoch)
        index = epoch * (len(self._counts) + 1)
        order = np.repeat(np.arange(len(self._counts)), num_batches)
        return rng(self._seed, index, Purpose.ORDER).permutation(order)
