"""Coefficients that combine stored averages into an average of another length.

A reconstruction is ``sum_i x_i theta_i`` over the stored averages i. :func:`solve_paper` chooses x
from the profiles alone (Algorithm 3). :func:`solve_calibrated` minimizes the expected error of the
weights, under a model of how they moved and were rounded, and predicts the error that remains.
What a target gets does not depend on others that are solved with it and end with it, to the last
bit. NumPy and SciPy only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edm2lite.ema.blas import on_one_thread
from edm2lite.ema.least_squares import LeastSquares
from edm2lite.ema.merging import merging_coefficients
from edm2lite.ema.profile import PowerFunction, Profile, Step, Stored, kinks
from edm2lite.ema.profile_fit import ProfileFit
from edm2lite.ema.quadrature import quadrature_nodes
from edm2lite.ema.solution import Solution as Solution
from edm2lite.ema.solution import equally_smooth, joined
from edm2lite.ema.trajectory import TrajectoryModel

Array = NDArray[np.float64]

_KNOWN = 1.05  # least misfit that the choice of a solution assumes

REVISION = "2"
"""Changes when :func:`solve_calibrated` gives other coefficients; recorded with every result."""


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
        >>> np.round(solution.coefficients, 3) + 0.0
        array([[0.438, 0.   ],
               [0.562, 1.   ]])
    """
    _check(sources, targets)
    groups = equally_smooth(targets)
    if len(groups) > 1:
        parts = [[targets[r] for r in group] for group in groups]
        return joined([solve_paper(sources, part, model, rounding) for part in parts], groups)
    columns, errors = [], []
    systems: dict[object, ProfileFit] = {}
    for target in targets:
        is_power = all(isinstance(p, PowerFunction) for p in (*sources, target))
        key = None if is_power else (target.nimg, kinks(target))
        if key not in systems:
            systems[key] = ProfileFit(sources, *key) if key else ProfileFit(sources, None)
        x, error = systems[key].fit(target)
        columns.append(x)
        errors.append(error)
    x = np.stack(columns, axis=1)
    if model is None:
        return Solution(x, np.array(errors))
    stored = [s for s in sources if isinstance(s, PowerFunction | Step)]
    if len(stored) < len(sources):
        raise ValueError("a model needs sources that are power functions; leave it out")
    return Solution(x, predicted_error(x, stored, targets, model, rounding), model)


@on_one_thread
def solve_calibrated(
    sources: Sequence[Stored],
    targets: Sequence[Profile],
    model: TrajectoryModel,
    rounding: ArrayLike,
) -> Solution:
    """Coefficients of minimum expected error, unless an error of the model could make them worse.

    The two candidates, the optimum x of the model and the paper's coefficients (for raw checkpoints
    alone, those of the merging rule :mod:`edm2lite.ema.merging`), differ by a
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
    groups = equally_smooth(targets)
    if len(groups) > 1:
        parts = [[targets[r] for r in group] for group in groups]
        return joined([solve_calibrated(sources, part, model, rounding) for part in parts], groups)
    paper = _reference(sources, targets, model, rounding)
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


def _reference(
    sources: Sequence[Stored],
    targets: Sequence[Profile],
    model: TrajectoryModel,
    rounding: ArrayLike,
) -> Solution:
    """Coefficients that rest on no model: the paper's, or the merging rule of raw checkpoints.

    The paper's fit of profiles has no place for raw checkpoints, so it is made without them.
    """
    averages = [i for i, s in enumerate(sources) if isinstance(s, PowerFunction)]
    if len(averages) == len(sources):
        return solve_paper(sources, targets, model, rounding)
    x = merging_coefficients(sources, targets)
    if averages:
        x = np.zeros_like(x)
        x[averages] = solve_paper([sources[i] for i in averages], targets).coefficients
    return Solution(x, predicted_error(x, sources, targets, model, rounding), model)


def minimum_error_coefficients(
    sources: Sequence[Stored],
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
    if k == 1:
        return np.ones((1, len(targets)))
    matrix = np.diff(a, axis=0).T
    size = np.sqrt((matrix**2).sum(axis=0))
    size[size <= 1e-10 * size.max()] = np.inf  # these two differ by rounding alone: no step
    system = LeastSquares(matrix / size, cond=1e-14)
    steps = np.stack([system.solve(row) / size for row in b - a[-1]], axis=1)  # [K - 1, R]
    coefficients = -np.diff(steps, axis=0, prepend=0, append=0)
    coefficients[-1] += 1
    return coefficients


def predicted_error(
    coefficients: Array,
    sources: Sequence[Stored],
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
    errors = []
    for x, target in zip(np.ascontiguousarray(coefficients.T), target_response, strict=True):
        movement, rounding_error = x @ response - target, x @ noise
        errors.append(np.sqrt(movement @ movement + rounding_error @ rounding_error))
    return model.misfit * np.array(errors)


def responses(
    sources: Sequence[Stored],
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
    breaks = [t for p in (*sources, *targets) for t in kinks(p)]
    quadrature = quadrature_nodes(ends, max(ends), breaks)
    response = model.response(sources, quadrature)
    noise = model.rounding_factor(sources, rounding, response)
    rows = [model.response([target], quadrature) for target in targets]
    return response, np.concatenate(rows), noise


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
