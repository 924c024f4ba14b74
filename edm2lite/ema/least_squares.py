"""Least squares for one right side after the other: the matrix is factored once.

A solution has the same bits whatever else is solved for: with several right sides at once, the
rounding of LAPACK depends on their number. NumPy and SciPy only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import qr, solve_triangular

Array = NDArray[np.float64]


class LeastSquares:
    """``argmin_x |A x - b|`` for one matrix, by a pivoted QR factorization.

    Where columns are dependent, it is the shortest of the solutions.

    Args:
        matrix: A [M, k].
        cond: Directions of A below this share of the largest one are left out.

    Example:
        >>> line = LeastSquares(np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]), cond=1e-14)
        >>> np.round(line.solve(np.array([1.0, 3.0, 5.0])), 9)
        array([1., 2.])
        >>> LeastSquares(np.ones((3, 2)), cond=1e-14).solve(np.full(3, 2.0)).round(9)
        array([1., 1.])
    """

    def __init__(self, matrix: Array, cond: float):
        reduced, triangle = np.linalg.qr(matrix)  # by blocks; the pivoting below is slow
        left, right, pivots = qr(triangle, mode="economic", pivoting=True)
        size = np.abs(np.diag(right))
        rank = int(np.sum(size > cond * size[0]))
        self._reduced, self._left = reduced, left[:, :rank]
        self._back, self._lower = qr(right[:rank].T, mode="economic")
        self._order = np.argsort(pivots)

    def solve(self, b: Array) -> Array:
        """Solution x [k] for b [M]."""
        inner = self._left.T @ (self._reduced.T @ b)
        x: Array = self._back @ solve_triangular(self._lower, inner, trans="T")
        return x[self._order]


class Symmetric:
    """``argmin_x |G x - b|`` for a symmetric matrix, the shortest one, by singular values.

    Args:
        matrix: G [k, k].
        cond: Singular values below this share of the largest one are left out.

    Example:
        >>> Symmetric(np.array([[2.0, 1.0], [1.0, 2.0]]), cond=1e-15).solve(np.ones(2)).round(9)
        array([0.33333333, 0.33333333])
    """

    def __init__(self, matrix: Array, cond: float):
        left, size, right = np.linalg.svd(matrix)
        rank = int(np.sum(size > cond * size[0]))
        self._left, self._size, self._right = left[:, :rank], size[:rank], right[:rank]

    def solve(self, b: Array) -> Array:
        """Solution x [k] for b [k]."""
        x: Array = self._right.T @ ((self._left.T @ b) / self._size)
        return x
