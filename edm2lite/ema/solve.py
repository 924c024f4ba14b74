"""Coefficients that turn stored averages into an average of another length. NumPy and SciPy only.

A reconstruction is ``sum_i x_i theta_i`` over the stored averages i. :func:`solve_paper` chooses x
from the profiles alone (Algorithm 3). :func:`solve_calibrated` minimises the expected error of the
weights under a model of how they moved and of how they were rounded, and says what error is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import lstsq

from edm2lite.ema.blas import on_one_thread
from edm2lite.ema.profile import PowerFunction, Profile, inner_product
from edm2lite.ema.quadrature import quadrature_nodes
from edm2lite.ema.trajectory import TrajectoryModel

Array = NDArray[np.float64]

_BINS = 4000  # for inner products of profiles that have no closed form


@dataclass(frozen=True)
class Solution:
    """Coefficients for R targets from K stored averages.

    Attributes:
        coefficients: [K, R] float64; every column sums to 1.
        predicted_error: [R] error of the weights relative to their L2 norm, as expected by
            ``model``; without a model the relative L2 error of the profile.
        model: The trajectory model behind the prediction, or None.
    """

    coefficients: Array
    predicted_error: Array
    model: TrajectoryModel | None = None

    @property
    def sum_abs(self) -> Array:
        """[R] sum of the absolute coefficients; independent rounding errors grow at most by it."""
        return np.abs(self.coefficients).sum(axis=0)


@on_one_thread
def solve_paper(
    sources: Sequence[Profile],
    targets: Sequence[Profile],
    model: TrajectoryModel | None = None,
    rounding: ArrayLike = 0.0,
) -> Solution:
    """Least-squares fit of the profiles (Algorithm 3), divided by the sum of the coefficients.

    Minimises ``int (sum_i x_i p_i - p_target)**2 dt``, closed form for power functions (Eq. 151).

    Args:
        sources: K stored averages.
        targets: R averages wanted.
        model: Predicts the error; the coefficients do not depend on it. Sources must be power
            functions then.
        rounding: [K] or scalar, relative RMS rounding error of the stored numbers, for ``model``.

    Raises:
        ValueError: Nothing to solve, or a source is later than a target.
    """
    _check(sources, targets)
    gram, right, square = _inner_products(sources, targets)
    norm = np.sqrt(np.diag(gram))
    unit = gram / np.outer(norm, norm)
    x = np.linalg.lstsq(unit, right / norm[:, None], rcond=1e-15)[0] / norm[:, None]
    x = x / x.sum(axis=0)
    if model is not None:
        powers = [s for s in sources if isinstance(s, PowerFunction)]
        if len(powers) < len(sources):
            raise ValueError("a model needs sources that are power functions; leave it out")
        return Solution(x, predicted_error(x, powers, targets, model, rounding), model)
    residual = (x * (gram @ x)).sum(axis=0) - 2 * (x * right).sum(axis=0) + square
    return Solution(x, np.sqrt(np.maximum(residual, 0) / square))


@on_one_thread
def solve_calibrated(
    sources: Sequence[PowerFunction],
    targets: Sequence[Profile],
    model: TrajectoryModel,
    rounding: ArrayLike,
) -> Solution:
    """Coefficients of least expected error where they promise a clear gain, else the paper's.

    The model is an estimate, so its optimum is trusted only if it halves the error, roughly: the
    predicted error of the paper's coefficients must be larger by more than ``1.75 + 4 / K``. The
    fewer averages K the model was learnt from, the more it must promise. (Measured: below that
    the model's choice was worse in some runs, by up to 1.9 times; above it, in none of 20,000.)

    Args:
        sources: K stored averages.
        targets: R averages wanted, of any shape.
        model: From :func:`edm2lite.ema.fitting.fit_trajectory`, on these or similar sources.
        rounding: [K] or scalar, relative RMS rounding error of the stored numbers.

    Raises:
        ValueError: Nothing to solve, or a source is later than a target.
    """
    paper = solve_paper(sources, targets, model, rounding)
    best = least_error(sources, targets, model, rounding)
    error = predicted_error(best, sources, targets, model, rounding)
    clear = paper.predicted_error > (1.75 + 4 / len(sources)) * error
    return Solution(
        np.where(clear, best, paper.coefficients),
        np.where(clear, error, paper.predicted_error),
        model,
    )


def least_error(
    sources: Sequence[PowerFunction],
    targets: Sequence[Profile],
    model: TrajectoryModel,
    rounding: ArrayLike,
) -> Array:
    """[K, R] coefficients that minimise the expected error under ``model``; columns sum to 1.

    Solves ``argmin_x |A x - b|`` subject to ``sum x = 1`` by a pivoted QR factorisation. The last
    coefficient is eliminated through differences of neighbours, which keep small what is small.
    """
    _check(sources, targets)
    k = len(sources)
    have, want, noise = responses(sources, targets, model, rounding)
    a = np.concatenate([have, noise], axis=1)
    b = np.concatenate([want, np.zeros((len(targets), noise.shape[1]))], axis=1)
    last = np.eye(k)[-1]
    differences = np.diff(np.eye(k), axis=0)  # [K - 1, K], rows sum to 0
    if k == 1:
        return np.ones((1, len(targets)))
    matrix = (differences @ a).T
    size = np.sqrt((matrix**2).sum(axis=0))
    size[size <= 1e-10 * size.max()] = np.inf  # nothing but rounding tells the two apart: no step
    z = lstsq(matrix / size, (b - a[-1]).T, cond=1e-14, lapack_driver="gelsy")[0] / size[:, None]
    return last[:, None] + differences.T @ z


def predicted_error(
    coefficients: Array,
    sources: Sequence[PowerFunction],
    targets: Sequence[Profile],
    model: TrajectoryModel,
    rounding: ArrayLike,
) -> Array:
    """[R] expected error of the weights, relative to their L2 norm, of any coefficients [K, R].

    ``sqrt(|x V - V_target|**2 + |x B|**2)`` with the movement V and rounding B of ``model``, times
    the model's misfit. Columns of ``coefficients`` must sum to 1.
    """
    have, want, noise = responses(sources, targets, model, rounding)
    movement = ((coefficients.T @ have - want) ** 2).sum(axis=1)
    return model.misfit * np.sqrt(movement + ((coefficients.T @ noise) ** 2).sum(axis=1))


def responses(
    sources: Sequence[PowerFunction],
    targets: Sequence[Profile],
    model: TrajectoryModel,
    rounding: ArrayLike,
) -> tuple[Array, Array, Array]:
    """Movement of sources [K, M] and targets [R, M], rounding of sources [K, m].

    The squared error of ``x`` is ``|x @ have - want|**2 + |x @ noise|**2``, before the misfit.
    """
    ends = [p.nimg for p in (*sources, *targets)]
    quadrature = quadrature_nodes(ends, max(ends))
    have = model.response(sources, quadrature)
    noise = model.rounding_factor(sources, rounding, have)
    return have, model.response(targets, quadrature), noise


def _inner_products(
    sources: Sequence[Profile], targets: Sequence[Profile]
) -> tuple[Array, Array, Array]:
    """Source-source [K, K], source-target [K, R] and target-itself [R] products of profiles."""
    k = len(sources)
    powers = [p for p in (*sources, *targets) if isinstance(p, PowerFunction)]
    if len(powers) == k + len(targets):
        t, gamma = np.array([(p.nimg, p.gamma) for p in powers], np.float64).T
        products = inner_product(t[:k, None], gamma[:k, None], t, gamma)
        return products[:, :k], products[:, k:], inner_product(t[k:], gamma[k:], t[k:], gamma[k:])
    ends = [p.nimg for p in (*sources, *targets)]
    grid = np.geomspace(min(ends) / 1000, max(ends), _BINS)
    edges = np.unique(np.concatenate([[0], grid, ends]))
    masses = np.stack([np.diff(p.cumulative(edges)) for p in (*sources, *targets)])
    densities = masses / np.diff(edges)
    products = masses[:k] @ densities.T
    return products[:, :k], products[:, k:], (masses[k:] * densities[k:]).sum(axis=1)


def _check(sources: Sequence[Profile], targets: Sequence[Profile]) -> None:
    if not sources or not targets:
        raise ValueError(
            f"need at least 1 stored average and 1 target, got {len(sources)} and {len(targets)}"
        )
    latest, earliest = max(s.nimg for s in sources), min(r.nimg for r in targets)
    if latest > earliest:
        raise ValueError(
            f"stored averages must not be later than the target, got nimg = {latest} for a target"
            f" at {earliest}; leave the later ones out"
        )
