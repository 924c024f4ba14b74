"""What to store in a run that has not begun: expected error and disk space of the choices.

The error depends on how the weights will move, which nobody knows yet. The assumption here is a
random walk of constant rate: increments of all times are independent and of equal variance, and
over the whole run they add up to ``movement`` times the RMS of the weights. There is no white noise
and no drift, and the float32 rounding of the tracker itself is left out. NumPy and SciPy only.

Errors are proportional to ``movement`` where rounding to the stored type does not dominate. Fitted
to the snapshots of the digits preset (64000 images, 1000 steps), the rate falls from 0.20 to 0.07
over the run: a movement of 0.33, and a drift of 0.30 that costs nothing, as coefficients that
sum to 1 follow it. The default of 1, weights that end as far from where they began as they are
long, is cautious by a factor of 3 there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edm2lite.ema.profile import PowerFunction
from edm2lite.ema.rounding import ROUNDING
from edm2lite.ema.solve import solve_calibrated
from edm2lite.ema.trajectory import TrajectoryModel

MOVEMENT = 1.0
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
PROFILES = ((0.10,), (0.05, 0.10), (0.02, 0.10), (0.05, 0.10, 0.20))
"""Sets of tracked lengths that are compared unless told otherwise."""


@dataclass(frozen=True)
class Choice:
    """A way to store snapshots.

    Attributes:
        sigma_rels: Tracked lengths.
        every: Images between snapshots; the end of the run is stored too.
        dtype: Stored floating-point type.
        num_files: Snapshots by the end of the run.
        num_bytes: Disk space of their tensors.
        worst_error: Largest predicted error over the lengths wanted.
        worst_sigma_rel: Where that is.
    """

    sigma_rels: tuple[float, ...]
    every: int
    dtype: str
    num_files: int
    num_bytes: int
    worst_error: float
    worst_sigma_rel: float


def random_walk(nimg: int, first_nimg: int, movement: float = MOVEMENT) -> TrajectoryModel:
    """The model of a walk of constant rate that has no other part.

    Args:
        nimg: Length of the run in images.
        first_nimg: Time of the first snapshot.
        movement: RMS movement over the run relative to the RMS of the weights, >= 0.

    Raises:
        ValueError: ``movement`` is negative or not finite.
    """
    if not 0 <= movement < np.inf:
        raise ValueError(f"movement must be a ratio of at least 0, got {movement}; runs have 0.3-1")
    none, rate = np.zeros(1), np.array([movement**2])
    return TrajectoryModel(nimg, first_nimg, np.zeros(0), rate, none, none)


def assess(
    sigma_rels: Sequence[float],
    every: int,
    dtype: str,
    *,
    duration: int,
    num_params: int,
    wanted: ArrayLike,
    movement: float = MOVEMENT,
) -> Choice:
    """Expected error and disk space of one way to store snapshots.

    Args:
        sigma_rels: Tracked lengths, each in (0, 0.2887).
        every: Images between snapshots, 0 < every <= duration.
        dtype: float32, float16 or bfloat16.
        duration: Length of the run in images.
        num_params: Parameters of the model.
        wanted: [R] lengths to rebuild at the end of the run.
        movement: See :func:`random_walk`.

    Raises:
        ValueError: Unusable numbers.
    """
    if not 0 < every <= duration:
        raise ValueError(
            f"the cadence must lie between 1 and the duration {duration}, got {every} images"
        )
    if dtype not in ITEM_BYTES:
        raise ValueError(f"dtype must be one of {', '.join(ITEM_BYTES)}, got {dtype!r}")
    times = [*range(every, duration, every), duration]
    sources = [PowerFunction.of_width(s, t) for t in times for s in sigma_rels]
    lengths = np.atleast_1d(np.asarray(wanted, np.float64))
    targets = [PowerFunction.of_width(float(s), duration) for s in lengths]
    model = random_walk(duration, times[0], movement)
    error = solve_calibrated(sources, targets, model, ROUNDING[dtype]).predicted_error
    worst = int(np.argmax(error))
    return Choice(
        sigma_rels=tuple(sigma_rels),
        every=every,
        dtype=dtype,
        num_files=len(sources),
        num_bytes=len(sources) * num_params * ITEM_BYTES[dtype],
        worst_error=float(error[worst]),
        worst_sigma_rel=float(lengths[worst]),
    )


def cadences(duration: int) -> list[int]:
    """The intervals that are compared unless told otherwise: 16, 32, 64 and 128 times in a run."""
    return [max(1, duration // count) for count in (16, 32, 64, 128)]


def lengths_between(low: float, high: float, count: int = 8) -> NDArray[np.float64]:
    """[count] relative widths at equal ratios, both ends included: a sample of a range."""
    return np.geomspace(low, high, count)


def cheapest(choices: Sequence[Choice], max_error: float) -> Choice | None:
    """The one of least disk space, then least error, that stays below a limit; None if none do."""
    good = [choice for choice in choices if choice.worst_error <= max_error]
    return min(good, key=lambda c: (c.num_bytes, c.worst_error), default=None)
