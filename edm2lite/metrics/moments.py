"""Mean and covariance of rows that come in parts: one pass, float64, no memory per row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edm2lite.tensorfile import load_tensors, save_tensors

Array = NDArray[np.float64]


class Moments:
    """Count, mean and covariance of rows that come in parts, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._total: Array = np.zeros(())
        self._outer: Array = np.zeros(())

    def add(self, rows: Array) -> None:
        """Take [N, F] more."""
        self.count += len(rows)
        self._total = self._total + rows.sum(axis=0)
        self._outer = self._outer + rows.T @ rows

    def merge(self, other: Moments) -> None:
        """Take what ``other`` has seen."""
        self.count += other.count
        self._total = self._total + other._total
        self._outer = self._outer + other._outer

    def without(self, other: Moments) -> Moments:
        """Of the rows that ``other``, which saw some of them, has not seen."""
        rest = Moments()
        rest.count = self.count - other.count
        rest._total, rest._outer = self._total - other._total, self._outer - other._outer
        return rest

    @property
    def mean(self) -> Array:
        """[F]."""
        return self._total / self.count

    @property
    def cov(self) -> Array:
        """[F, F], with the divisor count - 1."""
        return (self._outer - self.count * np.outer(self.mean, self.mean)) / (self.count - 1)

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        """Write the sums for another process."""
        sums = {"total": torch.from_numpy(self._total), "outer": torch.from_numpy(self._outer)}
        save_tensors(path, sums, {**metadata, "count": str(self.count)})

    @classmethod
    def load(cls, path: Path) -> Moments:
        """What :meth:`save` wrote."""
        tensors, metadata = load_tensors(path)
        moments = cls()
        moments.count = int(metadata["count"])
        moments._total, moments._outer = tensors["total"].numpy(), tensors["outer"].numpy()
        return moments
