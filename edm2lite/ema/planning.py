"""Plans what to store in a run that has not begun: expected error and disk space of each option.

The error depends on how the weights will move, which nobody knows yet. The assumption here is a
random walk of constant rate: increments at all times are independent and have equal variance, and
over the whole run they add up to ``movement`` times the RMS of the weights. There is no white noise
and no drift, and the float32 rounding of the tracker itself is left out. NumPy and SciPy only.

Errors are proportional to ``movement`` unless rounding to the stored type dominates. Fitted to the
snapshots of the digits preset (64000 images, 1000 steps), the rate falls from 0.20 to 0.07 over the
run: a movement of 0.33, and a drift of 0.30, which costs nothing because coefficients that sum to 1
follow it. The default of 1 means weights that end as far from their start as their own norm, and
overestimates the errors there by a factor of 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edm2lite.ema.decays import NamedDecay
from edm2lite.ema.profile import PowerFunction, Profile
from edm2lite.ema.rounding import ROUNDING
from edm2lite.ema.selection import select_sources
from edm2lite.ema.solve import solve_calibrated
from edm2lite.ema.trajectory import TrajectoryModel

MOVEMENT = 1.0
"""Assumed RMS movement of the weights over the run, relative to their RMS."""
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes per value of each type in which snapshots can be stored."""
PROFILES = ((0.10,), (0.05, 0.10), (0.02, 0.10), (0.05, 0.10, 0.20))
"""Sets of tracked lengths that are compared by default."""


@dataclass(frozen=True)
class StoragePlan:
    """A way to store snapshots, with its expected error and disk space.

    Attributes:
        sigma_rels: Tracked lengths.
        every: Images between snapshots; the end of the run is stored too.
        dtype: Stored floating-point type.
        num_files: Number of snapshot files at the end of the run.
        num_bytes: Disk space of their tensors in bytes.
        worst_error: Largest predicted error among the targets.
        worst_sigma_rel: Target length with the largest predicted error, nan if it is a decay.
        worst_decay: Decay with the largest predicted error, "" if it is a length.

    Example:
        >>> plan = StoragePlan((0.05, 0.10), 2**21, "float16", 64, 2 * 10**9, 0.01, 0.02)
        >>> f"{plan.num_files} files, {plan.num_bytes / 1e9:.1f} GB"
        '64 files, 2.0 GB'
    """

    sigma_rels: tuple[float, ...]
    every: int
    dtype: str
    num_files: int
    num_bytes: int
    worst_error: float
    worst_sigma_rel: float
    worst_decay: str = ""


def random_walk(nimg: int, first_nimg: int, movement: float = MOVEMENT) -> TrajectoryModel:
    """The trajectory model of a random walk of constant rate and nothing else.

    Args:
        nimg: Length of the run in images.
        first_nimg: Time of the first snapshot in images.
        movement: RMS movement over the run, relative to the RMS of the weights, >= 0.

    Raises:
        ValueError: If ``movement`` is negative or not finite.

    Example:
        >>> random_walk(2**26, 2**20, movement=0.5).walk
        array([0.25])
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
    target_sigma_rels: ArrayLike = (),
    target_decays: Sequence[str] = (),
    movement: float = MOVEMENT,
) -> StoragePlan:
    """Expected error and disk space of one way to store snapshots.

    Args:
        sigma_rels: Tracked lengths, each in (0, 0.2887).
        every: Images between snapshots, 0 < every <= duration.
        dtype: float32, float16 or bfloat16.
        duration: Length of the run in images.
        num_params: Number of parameters of the model.
        target_sigma_rels: Lengths to rebuild at the end of the run.
        target_decays: Decays of the learning rate to emulate there, such as ``cosine:0.2``.
        movement: RMS movement over the run, relative to the RMS of the weights.

    Raises:
        ValueError: If a number is out of range, ``dtype`` is not one of the three, or there is no
            target.

    Example:
        >>> plan = assess(
        ...     (0.05, 0.10), every=2**21, dtype="float16", duration=2**26, num_params=280_000_000,
        ...     target_sigma_rels=[0.04, 0.15],
        ... )
        >>> plan.num_files, plan.num_bytes / 1e9, plan.worst_sigma_rel
        (64, 35.84, 0.04)
        >>> decays = ["linear:0.2", "1-sqrt:0.2"]
        >>> assess((0.05, 0.10), 2**21, "float16", duration=2**26, num_params=280_000_000,
        ...        target_decays=decays).worst_decay
        '1-sqrt:0.2'
    """
    if not 0 < every <= duration:
        raise ValueError(
            f"the cadence must lie between 1 and the duration {duration}, got {every} images"
        )
    if dtype not in ITEM_BYTES:
        raise ValueError(f"dtype must be one of {', '.join(ITEM_BYTES)}, got {dtype!r}")
    times = [*range(every, duration, every), duration]
    sources = [PowerFunction.of_width(s, t) for t in times for s in sigma_rels]
    lengths = np.atleast_1d(np.asarray(target_sigma_rels, np.float64))
    targets: list[Profile] = [PowerFunction.of_width(float(s), duration) for s in lengths]
    targets += [NamedDecay.parse(name).at(duration) for name in target_decays]
    model = random_walk(duration, times[0], movement)
    used = [sources[i] for i in select_sources(sources)]
    error = solve_calibrated(used, targets, model, ROUNDING[dtype]).predicted_error
    worst = int(np.argmax(error))
    return StoragePlan(
        sigma_rels=tuple(sigma_rels),
        every=every,
        dtype=dtype,
        num_files=len(sources),
        num_bytes=len(sources) * num_params * ITEM_BYTES[dtype],
        worst_error=float(error[worst]),
        worst_sigma_rel=float(lengths[worst]) if worst < len(lengths) else float("nan"),
        worst_decay=target_decays[worst - len(lengths)] if worst >= len(lengths) else "",
    )


def cadences(duration: int) -> list[int]:
    """The cadences that are compared by default: 16, 32, 64 and 128 snapshots in a run.

    Args:
        duration: Length of the run in images.

    Example:
        >>> cadences(64_000)
        [4000, 2000, 1000, 500]
    """
    return [max(1, duration // count) for count in (16, 32, 64, 128)]


def lengths_between(low: float, high: float, count: int = 8) -> NDArray[np.float64]:
    """EMA lengths at equal ratios from ``low`` to ``high``, a sample of the range.

    Args:
        low: Smallest width, > 0.
        high: Largest width.
        count: Number of widths, both ends included.

    Example:
        >>> lengths_between(0.05, 0.20, 3)
        array([0.05, 0.1 , 0.2 ])
    """
    return np.geomspace(low, high, count)


def cheapest(plans: Sequence[StoragePlan], max_error: float) -> StoragePlan | None:
    """The smallest plan whose worst error is within a limit; None if there is none.

    Of two plans of the same size, it is the one with the smaller error.

    Args:
        plans: Plans to choose from.
        max_error: Largest acceptable predicted error.

    Example:
        >>> small = StoragePlan((0.10,), 2**21, "float16", 32, 10**9, 0.04, 0.02)
        >>> large = StoragePlan((0.05, 0.10), 2**21, "float16", 64, 2 * 10**9, 0.01, 0.02)
        >>> cheapest([small, large], max_error=0.02) is large
        True
    """
    good = [plan for plan in plans if plan.worst_error <= max_error]
    return min(good, key=lambda plan: (plan.num_bytes, plan.worst_error), default=None)
