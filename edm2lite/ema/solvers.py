"""The solvers by name, and which snapshots each of them uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from edm2lite.ema.blas import on_one_thread
from edm2lite.ema.merging import merging_coefficients
from edm2lite.ema.profile import Profile, Step, Stored
from edm2lite.ema.solve import Solution, predicted_error, solve_calibrated, solve_paper
from edm2lite.ema.trajectory import TrajectoryModel

Solver = Callable[
    [Sequence[Stored], Sequence[Profile], TrajectoryModel, ArrayLike],
    Solution,
]


@on_one_thread
def solve_wsm(
    sources: Sequence[Stored],
    targets: Sequence[Profile],
    model: TrajectoryModel,
    rounding: ArrayLike,
) -> Solution:
    """The merging rule of :mod:`edm2lite.ema.merging`, with its expected error under a model.

    Args:
        sources: K snapshots; those that are no raw checkpoints get 0.
        targets: R averages to emulate.
        model: Trajectory model, which predicts the error; the coefficients do not depend on it.
        rounding: [K] or scalar, relative RMS rounding error of the stored numbers.

    Raises:
        ValueError: If no source is a raw checkpoint.

    Example:
        >>> from edm2lite.ema.planning import random_walk
        >>> from edm2lite.ema.profile import Window
        >>> checkpoints = [Step(100 * k, stride=1) for k in range(1, 9)]
        >>> given = [Window(400, nimg=800)], random_walk(800, 100), 0.0
        >>> merged, best = (f(checkpoints, *given) for f in (solve_wsm, solve_calibrated))
        >>> round(float(merged.predicted_error[0] / best.predicted_error[0]), 1)
        2.0
    """
    x = merging_coefficients(sources, targets)
    errors = [
        predicted_error(x[:, r : r + 1], sources, [target], model, rounding)
        for r, target in enumerate(targets)
    ]
    return Solution(x, np.concatenate(errors), model)


SOLVERS: dict[str, Solver] = {
    "calibrated": solve_calibrated,
    "paper": solve_paper,
    "wsm": solve_wsm,
}
"""Name -> solver. ``paper`` combines averages, ``wsm`` raw checkpoints, ``calibrated`` both."""


def usable(solver: str, profiles: Sequence[Stored]) -> list[int]:
    """Indices of the snapshots that a solver can use.

    Args:
        solver: One of :data:`SOLVERS`.
        profiles: K snapshots.

    Raises:
        ValueError: If there is no such solver, or it can use none of the snapshots.

    Example:
        >>> usable("wsm", [Step(100), Step(200)])
        [0, 1]
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
    is_raw = np.array([isinstance(p, Step) for p in profiles], dtype=bool)
    takes = {"paper": ~is_raw, "wsm": is_raw}.get(solver, np.ones_like(is_raw))
    if not takes.any():
        what, others = {"paper": ("averages", "raw checkpoints")}.get(
            solver, ("raw checkpoints", "averages")
        )
        raise ValueError(
            f"solver {solver} needs {what}, the snapshots are {others}; use calibrated"
        )
    return [int(i) for i in np.flatnonzero(takes)]
