"""Mean and covariance of rows that come in parts: one pass, float64, no memory per row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edm2lite.tensorfile import load_tensors, save_tensors

Array = NDArray[np.float64]


def check_moments(mean: NDArray[Any], cov: NDArray[Any]) -> None:
    """Refuse what no features have as mean and covariance.

    Args:
        mean: [F].
        cov: [F, F].

    Raises:
        ValueError: If the shapes differ from that, a number is not finite or not floating-point, or
            the covariance is not symmetric, or negative in some direction.

    Example:
        >>> check_moments(np.zeros(2), np.array([[1.0, 2.0], [2.0, 1.0]]))
        Traceback (most recent call last):
        ValueError: the covariance is negative in some direction
    """
    if mean.ndim != 1 or not len(mean) or cov.shape != (len(mean), len(mean)):
        raise ValueError(f"they have shapes {list(mean.shape)} and {list(cov.shape)}")
    if mean.dtype.kind != "f" or cov.dtype.kind != "f":
        raise ValueError("they must be floating-point numbers")
    cov = cov.astype(np.float64)
    if not (np.abs(mean.astype(np.float64)) < 1e100).all() or not (np.abs(cov) < 1e100).all():
        raise ValueError("they must be finite numbers")
    slack = 1e-6 * float(np.abs(np.diag(cov)).sum()) + 1e-100  # for rounding in float32
    if (np.abs(cov - cov.T) > slack).any():
        raise ValueError("the covariance is not symmetric")
    try:
        np.linalg.cholesky(cov + slack * np.eye(len(cov)))
    except np.linalg.LinAlgError:
        raise ValueError("the covariance is negative in some direction") from None


class RunningMoments:
    """Number, mean and covariance of rows that come in parts, in float64.

    Example:
        >>> moments = RunningMoments()
        >>> moments.add(np.array([[1.0, 0.0], [3.0, 1.0]]))
        >>> moments.add(np.array([[5.0, 2.0]]))
        >>> moments.count, moments.mean, moments.cov
        (3, array([3., 1.]), array([[4., 2.],
               [2., 1.]]))
    """

    def __init__(self) -> None:
        self.count = 0
        self._total: Array = np.zeros(())
        self._outer: Array = np.zeros(())

    def add(self, rows: Array) -> None:
        """Take in further rows [N, F]."""
        self.count += len(rows)
        self._total = self._total + rows.sum(axis=0)
        self._outer = self._outer + rows.T @ rows

    def merge(self, other: RunningMoments) -> None:
        """Take in the rows that ``other`` has seen."""
        self.count += other.count
        self._total = self._total + other._total
        self._outer = self._outer + other._outer

    def without(self, other: RunningMoments) -> RunningMoments:
        """Moments of the rows that ``other``, which saw some of them, has not seen."""
        rest = RunningMoments()
        rest.count = self.count - other.count
        rest._total, rest._outer = self._total - other._total, self._outer - other._outer
        return rest

    @property
    def mean(self) -> Array:
        """Mean of the rows, [F]."""
        return self._total / self.count

    @property
    def cov(self) -> Array:
        """Covariance of the rows, [F, F], with the divisor count - 1."""
        return (self._outer - self.count * np.outer(self.mean, self.mean)) / (self.count - 1)

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        """Write the sums to a file for another process."""
        sums = {"total": torch.from_numpy(self._total), "outer": torch.from_numpy(self._outer)}
        save_tensors(path, sums, {**metadata, "count": str(self.count)})

    @classmethod
    def load(cls, path: Path) -> RunningMoments:
        """The moments that :meth:`save` wrote."""
        tensors, metadata = load_tensors(path)
        moments = cls()
        moments.count = int(metadata["count"])
        moments._total, moments._outer = tensors["total"].numpy(), tensors["outer"].numpy()
        return moments
