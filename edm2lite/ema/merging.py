"""The rule by which raw checkpoints are merged to emulate a learning-rate schedule (WSM).

Let a run of constant rate take updates g_i from theta_{i-1} to theta_i. With non-increasing
multipliers w_i of these updates, the run would have ended at

    theta_0 - sum_i w_i g_i = sum_j c_j theta_j,    c_0 = 1 - w_1,  c_j = w_j - w_{j+1},  c_k = w_k

(arXiv 2507.17634), where theta_j are the weights after update j. An average of the cumulative
weight P has the multiplier ``w = 1 - P`` of an update that begins when P is the share before it.
With checkpoints further apart than one update, all updates between two of them get the multiplier
that the first of these has. NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edm2lite.ema.profile import Profile, Step, Stored

Array = NDArray[np.float64]


def merging_coefficients(sources: Sequence[Stored], targets: Sequence[Profile]) -> Array:
    """Coefficients [K, R] of the merging rule; columns sum to 1.

    A checkpoint gets the weight that the target has between the checkpoint before it and itself.
    Sources that are no raw checkpoints get 0.

    Args:
        sources: K snapshots, none of them later than a target.
        targets: R averages to emulate.

    Raises:
        ValueError: If no source is a raw checkpoint.

    Example:
        >>> from edm2lite.ema.profile import Window
        >>> checkpoints = [Step(100 * k) for k in range(1, 6)]
        >>> merging_coefficients(checkpoints, [Window(200, nimg=500)])[:, 0]
        array([0. , 0. , 0. , 0.5, 0.5])
    """
    raw = np.array([i for i, s in enumerate(sources) if isinstance(s, Step)], dtype=np.intp)
    if not len(raw):
        raise ValueError(
            "the merging rule (wsm) needs raw checkpoints, the snapshots are averages; use the"
            " solver calibrated, or import checkpoints (edm2lite import --raw)"
        )
    times = np.array([sources[i].nimg for i in raw], np.float64)
    order = np.argsort(times, kind="stable")
    coefficients = np.zeros((len(sources), len(targets)))
    for r, target in enumerate(targets):
        before = target.cumulative(times[order])
        before[-1] = 1.0  # what comes after the last checkpoint is left to it
        coefficients[raw[order], r] = np.diff(before, prepend=0)
    return coefficients
