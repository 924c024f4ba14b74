"""Coefficients that combine stored averages into an average of another length.

A reconstruction is ``sum_i x_i theta_i`` over the stored averages i. :func:`solve_paper` chooses x
from the profiles alone (Algorithm 3). :func:`solve_calibrated` minimizes the expected error of the
weights, under a model of how they moved and were rounded, and predicts the error that remains.
NumPy and SciPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import lstsq

from edm2lite.ema.blas import on_one_thread
from edm2lite.ema.formulas import inner_product
from edm2lite.ema.profile import PowerFunction, Profile
from edm2lite.ema.quadrature import quadrature_nodes
from edm2lite.ema.trajectory import TrajectoryModel

Array = NDArray[np.float64]

_KNOWN = 1.05  # least misfit that the choice of a solution assumes
_BINS = 4000  # for inner products of profiles that have no closed form

REVISION = "2"
"""Changes when :func:`solve_calibrated` gives other coefficients; recorded with every result."""


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


@on_one_thread
def solve_paper(
    sources: Sequence[Profile],
    targets: Sequence[Profile],
    model: TrajectoryModel | None = None,
    rounding: ArrayLike = 0.0,
) -> Solution:
    """Least-squares fit of the profiles (Algorithm 3), divided by the sum of the coefficients.

    Minimizes ``int (sum_i x_i p_i - p_target)**2 dt``, in closed form for power functions
    (Eq. 151).

    Args:
        sources: K stored averages.
        targets: R averages to rebuild.
        model: Trajectory model that predicts the error; the coefficients do not depend on it. It
            requires sources that are power functions.
        rounding: [K] or scalar, relative RMS rounding error of the stored numbers, for ``model``.

    Raises:
        ValueError: If there is no source or no target, or a source is later than a target.

    Example:
        >>> sources = [PowerFunction.of_width(s, 1000) for s in (0.05, 0.10)]
        >>> targets = [PowerFunction.of_width(s, 1000) for s in (0.07, 0.10)]
        >>> solution = solve_paper(sources, targets)
        >>> np.round(solution.coefficients, 3)
        array([[0.438, 0.   ],
               [0.562, 1.   ]])
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
    """Coefficients of minimum expected error, unless an error of the model could make them worse.

    The two candidates, the optimum x of the model and the paper's coefficients, differ by a
    combination of stored averages. Its size D is therefore measured, not predicted. If the model is
    right, the error of x, of expected size E, is uncorrelated with this difference, and x is the
    better one. With a misfit f, a share ``1 - 1 / f**2`` of the squared error is unexplained. At
    worst it points against the difference, and x is the better one only if

        D > 2 sqrt(1 - 1 / f**2) E

    No fit is trusted to better than 5 %: f is at least 1.05. (Measured on sixteen kinds of
    trajectory, three seeds: 72 of 33,792 results were worse than the paper's by more than 10 %, by
    up to 3.4 times, where one sudden move of all weights dominates. See benchmarks/RESULTS.md.)

    Args:
        sources: K stored averages.
        targets: R averages to rebuild, of any shape.
        model: Result of :func:`edm2lite.ema.trajectory_fit.fit_trajectory` for these or similar
            sources.
        rounding: [K] or scalar, relative RMS rounding error of the stored numbers.

    Raises:
        ValueError: If there is no source or no target, or a source is later than a target.

    Example:
        >>> from edm2lite.ema.planning import random_walk
        >>> sources = [PowerFunction.of_width(s, 100 * k) for k in (1, 2, 3) for s in (0.05, 0.10)]
        >>> target = PowerFunction.of_width(0.07, 300)
        >>> solution = solve_calibrated(sources, [target], random_walk(300, 100), 2.5e-8)
        >>> round(float(solution.coefficients.sum()), 9), bool(solution.predicted_error[0] < 0.01)
        (1.0, True)
    """
    paper = solve_paper(sources, targets, model, rounding)
    best = minimum_error_coefficients(sources, targets, model, rounding)
    error = predicted_error(best, sources, targets, model, rounding)
    apart = model.measured(sources, best - paper.coefficients)
    if apart is None:
        apart = np.sqrt(np.maximum(paper.predicted_error**2 - error**2, 0))
    unexplained = 1 - 1 / max(model.misfit, _KNOWN) ** 2
    safe = apart > 2 * np.sqrt(unexplained) * error
    return Solution(
        np.where(safe, best, paper.coefficients),
        np.where(safe, error, paper.predicted_error),
        model,
    )


def minimum_error_coefficients(
    sources: Sequence[PowerFunction],
    targets: Sequence[Profile],
    model: TrajectoryModel,
    rounding: ArrayLike,
) -> Array:
    """Coefficients [K, R] that minimize the expected error under a model; columns sum to 1.

    Solves ``argmin_x |A x - b|`` subject to ``sum x = 1`` by a pivoted QR factorization. The
    constraint is eliminated through differences of neighboring sources, which keeps small
    differences accurate.

    Args:
        sources: K stored averages.
        targets: R averages to rebuild.
        model: Trajectory model.
        rounding: [K] or scalar, relative RMS rounding error of the stored numbers.

    Raises:
        ValueError: If there is no source or no target, or a source is later than a target.

    Example:
        >>> from edm2lite.ema.planning import random_walk
        >>> sources = [PowerFunction.of_width(0.10, t) for t in (100, 200)]
        >>> x = minimum_error_coefficients(sources, [sources[1]], random_walk(200, 100), 0.0)
        >>> np.round(x[:, 0], 9) + 0.0
        array([0., 1.])
    """
    _check(sources, targets)
    k = len(sources)
    response, target_response, noise = responses(sources, targets, model, rounding)
    a = np.concatenate([response, noise], axis=1)
    b = np.concatenate([target_response, np.zeros((len(targets), noise.shape[1]))], axis=1)
    last = np.eye(k)[-1]
    differences = np.diff(np.eye(k), axis=0)  # [K - 1, K], rows sum to 0
    if k == 1:
        return np.ones((1, len(targets)))
    matrix = (differences @ a).T
    size = np.sqrt((matrix**2).sum(axis=0))
    size[size <= 1e-10 * size.max()] = np.inf  # these two differ by rounding alone: no step
    z: Array = (
        lstsq(matrix / size, (b - a[-1]).T, cond=1e-14, lapack_driver="gelsy")[0] / size[:, None]
    )
    coefficients: Array = last[:, None] + differences.T @ z
    return coefficients


def predicted_error(
    coefficients: Array,
    sources: Sequence[PowerFunction],
    targets: Sequence[Profile],
    model: TrajectoryModel,
    rounding: ArrayLike,
) -> Array:
    """Expected error [R] of the weights, relative to their L2 norm, for given coefficients.

    ``sqrt(|x V - V_target|**2 + |x B|**2)``, with the movement V and the rounding B of the model,
    times the misfit of the model.

    Args:
        coefficients: [K, R]; columns must sum to 1.
        sources: K stored averages.
        targets: R averages to rebuild.
        model: Trajectory model.
        rounding: [K] or scalar, relative RMS rounding error of the stored numbers.

    Example:
        >>> from edm2lite.ema.planning import random_walk
        >>> stored, target = (PowerFunction.of_width(s, 1000) for s in (0.10, 0.05))
        >>> model = random_walk(1000, 1000)
        >>> nearest = predicted_error(np.ones((1, 1)), [stored], [target], model, 0.0)
        >>> round(float(nearest[0]), 2)  # of using the average of 0.10 in place of 0.05
        0.12
    """
    response, target_response, noise = responses(sources, targets, model, rounding)
    movement = ((coefficients.T @ response - target_response) ** 2).sum(axis=1)
    rounding_error = ((coefficients.T @ noise) ** 2).sum(axis=1)
    error: Array = model.misfit * np.sqrt(movement + rounding_error)
    return error


def responses(
    sources: Sequence[PowerFunction],
    targets: Sequence[Profile],
    model: TrajectoryModel,
    rounding: ArrayLike,
) -> tuple[Array, Array, Array]:
    """Vectors of the movement of sources [K, M] and targets [R, M], and of the rounding [K, m].

    With these results V, V_target and B, the expected squared error of coefficients x is
    ``|x @ V - V_target|**2 + |x @ B|**2``, times the squared misfit of the model.

    Args:
        sources: K stored averages.
        targets: R averages to rebuild.
        model: Trajectory model.
        rounding: [K] or scalar, relative RMS rounding error of the stored numbers.
    """
    ends = [p.nimg for p in (*sources, *targets)]
    quadrature = quadrature_nodes(ends, max(ends))
    response = model.response(sources, quadrature)
    noise = model.rounding_factor(sources, rounding, response)
    return response, model.response(targets, quadrature), noise


def _inner_products(
    sources: Sequence[Profile], targets: Sequence[Profile]
) -> tuple[Array, Array, Array]:
    """Inner products of the profiles.

    Returns:
        Sources with sources [K, K], sources with targets [K, R], and targets with themselves [R].
    """
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
