"""Coefficients that turn stored averages into an average of another length. No torch.

A reconstruction is ``sum_i x_i theta_i`` over the stored averages i; the solvers here choose x from
the profiles alone (:func:`solve_paper`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edm2lite.ema.profile import PowerFunction, inner_product


@dataclass(frozen=True)
class Solution:
    """Coefficients for R targets from K stored averages.

    Attributes:
        coefficients: [K, R] float64; every column sums to 1.
        profile_error: [R] relative L2 distance between the profile obtained and the one asked for.
    """

    coefficients: NDArray[np.float64]
    profile_error: NDArray[np.float64]

    @property
    def sum_abs(self) -> NDArray[np.float64]:
        """[R] sum of the absolute coefficients, by which rounding of the stored files grows."""
        return np.abs(self.coefficients).sum(axis=0)


def solve_paper(sources: Sequence[PowerFunction], targets: Sequence[PowerFunction]) -> Solution:
    """Least-squares fit of the profiles (Algorithm 3), normalised so that constants survive.

    Minimises ``|| sum_i x_i p_i - p_target ||**2`` and divides x by its sum.

    Raises:
        ValueError: No source, a source later than a target, or one stored twice.
    """
    _check(sources, targets)
    t, gamma = (
        np.array(v, np.float64) for v in zip(*((s.nimg, s.gamma) for s in sources), strict=True)
    )
    t_r, gamma_r = (
        np.array(v, np.float64) for v in zip(*((r.nimg, r.gamma) for r in targets), strict=True)
    )
    norm = np.sqrt(inner_product(t, gamma, t, gamma))
    gram = inner_product(t[:, None], gamma[:, None], t, gamma) / np.outer(norm, norm)
    right = inner_product(t[:, None], gamma[:, None], t_r, gamma_r) / norm[:, None]
    x = np.linalg.lstsq(gram, right, rcond=1e-15)[0] / norm[:, None]
    x = x / x.sum(axis=0)
    square = inner_product(t_r, gamma_r, t_r, gamma_r)
    scaled = x * norm[:, None]
    residual = (scaled * (gram @ scaled)).sum(0) - 2 * (scaled * right).sum(0) + square
    return Solution(x, np.sqrt(np.maximum(residual, 0) / square))


def _check(sources: Sequence[PowerFunction], targets: Sequence[PowerFunction]) -> None:
    if not sources or not targets:
        raise ValueError(
            f"need at least 1 stored average and 1 target, got {len(sources)}, {len(targets)}"
        )
    latest, earliest = max(s.nimg for s in sources), min(r.nimg for r in targets)
    if latest > earliest:
        raise ValueError(
            f"stored averages must not be later than the target, got nimg = {latest} for one at"
            f" {earliest}; leave the later ones out"
        )
    if len({(s.nimg, s.gamma) for s in sources}) < len(sources):
        raise ValueError("every stored average must be given once, got duplicates; leave one out")
