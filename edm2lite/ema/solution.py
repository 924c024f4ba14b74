"""What a solver gives: coefficients of stored averages, and the error that is left.

NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edm2lite.ema.profile import Profile, kinks
from edm2lite.ema.trajectory import TrajectoryModel

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Solution:
    """Coefficients for R targets from K stored averages.

    Attributes:
        coefficients: [K, R] float64; every column sums to 1.
        predicted_error: [R] expected error of the weights under ``model``, relative to their L2
            norm; without a model the relative L2 error of the profile.
        model: The trajectory model behind the prediction, or None.

    Example:
        >>> Solution(np.array([[1.5], [-0.5]]), np.zeros(1)).sum_abs
        array([2.])
    """

    coefficients: Array
    predicted_error: Array
    model: TrajectoryModel | None = None

    @property
    def sum_abs(self) -> Array:
        """Sum [R] of the absolute coefficients, a bound on the growth of rounding errors."""
        total: Array = np.abs(self.coefficients).sum(axis=0)
        return total


def equally_smooth(targets: Sequence[Profile]) -> list[list[int]]:
    """Indices of targets in groups of equal kinks, for which integrals are split alike.

    Solved group by group, what a target gets does not depend on the other ones.

    Args:
        targets: R averages to rebuild.

    Example:
        >>> from edm2lite.ema.profile import PowerFunction, Window
        >>> equally_smooth([PowerFunction(7.0, 100), Window(10, 100), PowerFunction(5.0, 100)])
        [[0, 2], [1]]
    """
    groups: dict[tuple[float, ...], list[int]] = {}
    for r, target in enumerate(targets):
        groups.setdefault(kinks(target), []).append(r)
    return list(groups.values())


def joined(solutions: Sequence[Solution], groups: Sequence[Sequence[int]]) -> Solution:
    """The solutions of groups of targets as one, in the order of the targets.

    Args:
        solutions: Solution of each group.
        groups: Indices of the targets in each group.

    Example:
        >>> one, other = (Solution(np.full((1, 1), x), np.zeros(1)) for x in (1.0, 2.0))
        >>> joined([one, other], [[1], [0]]).coefficients
        array([[2., 1.]])
    """
    order = np.argsort(np.concatenate(groups))
    return Solution(
        np.concatenate([s.coefficients for s in solutions], axis=1)[:, order],
        np.concatenate([s.predicted_error for s in solutions])[order],
        solutions[0].model,
    )
