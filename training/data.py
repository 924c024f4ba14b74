"""Batches for training: which images, with which noise, as functions of the images seen so far."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edm2lite.dataset import ImageDataset
from edm2lite.seeding import Purpose, normals, rng


@dataclass(frozen=True)
class Batch:
    """What one process trains on in one forward pass.

    Attributes:
        images: [N, C, H, W] uint8.
        labels: [N] int64, or None.
        z: [N] standard normal, from which the noise level is made.
        noise: [N, C, H, W] standard normal.
        indices: [N] position of each sample in the run, counted from 0.
    """

    images: Tensor
    labels: Tensor | None
    z: Tensor
    noise: Tensor
    indices: NDArray[np.int64]


class BatchSource:
    """This rank's share of every global batch.

    The sample at position g of the run is image ``permutation(seed, g // n)[g % n]`` with noise
    drawn from (seed, g): neither ranks nor micro-batches nor restarts change it. The next batch is
    prepared in a thread while the current one trains.

    Args:
        dataset: Of n images.
        seed: Of the run.
        batch_size: Global, a multiple of ``world_size``.
        microbatch: Most samples in one forward pass.
        rank, world_size: Which share.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        *,
        seed: int,
        batch_size: int,
        microbatch: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.dataset, self.seed, self.batch_size = dataset, seed, batch_size
        self.microbatch = microbatch
        self.share = batch_size // world_size
        self.first = rank * self.share
        self._permutation = lru_cache(maxsize=2)(self._new_permutation)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._next: tuple[int, Future[list[Batch]]] | None = None

    def batch(self, nimg: int) -> list[Batch]:
        """The micro-batches of the step that starts at ``nimg`` images."""
        if self._next is not None and self._next[0] == nimg:
            batches = self._next[1].result()
        else:
            batches = self._make(nimg)
        following = nimg + self.batch_size
        self._next = (following, self._pool.submit(self._make, following))
        return batches

    def close(self) -> None:
        """Stop preparing batches."""
        self._pool.shutdown(cancel_futures=True)

    def _make(self, nimg: int) -> list[Batch]:
        begin = nimg + self.first
        return [
            self._micro(np.arange(start, min(start + self.microbatch, begin + self.share)))
            for start in range(begin, begin + self.share, self.microbatch)
        ]

    def _micro(self, indices: NDArray[np.int64]) -> Batch:
        rows = np.array([self._row(int(g)) for g in indices])
        generators = [rng(self.seed, int(g), Purpose.TRAINING) for g in indices]
        labels = self.dataset.labels
        return Batch(
            images=torch.from_numpy(self.dataset.images(list(rows))),
            labels=None if labels is None else torch.from_numpy(labels[rows]),
            z=normals(generators, ()),
            noise=normals(generators, self.dataset.image_shape),
            indices=indices,
        )

    def _row(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.dataset))
        return int(self._permutation(epoch)[offset])

    def _new_permutation(self, epoch: int) -> NDArray[np.int64]:
        return rng(self.seed, epoch, Purpose.ORDER).permutation(len(self.dataset))
