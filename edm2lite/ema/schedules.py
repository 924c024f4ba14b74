"""The learning rate schedule that an average emulates, whatever its kind.

NumPy and SciPy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edm2lite.ema.profile import Profile, kinks
from edm2lite.ema.quadrature import quadrature_nodes


@dataclass(frozen=True)
class EmulatedSchedule:
    """What an average does to the learning rate of a run of constant rate, in numbers.

    Times are fractions of the run up to the end of the average.

    Attributes:
        halves_at: Time at which the emulated rate falls to one half.
        budget: Mean of the multiplier: the share that is kept of the sum of all learning rates.
        linear_decay: Length of the linear decay that keeps as much; None if even that of the whole
            run keeps more.

    Example:
        >>> from edm2lite.ema.profile import PowerFunction
        >>> schedule = emulated_schedule(PowerFunction(6.937, 1000))
        >>> f"{schedule.halves_at:.3f} {schedule.budget:.3f} {schedule.linear_decay:.3f}"
        '0.916 0.888 0.224'
    """

    halves_at: float
    budget: float
    linear_decay: float | None


def multiplier(profile: Profile, t: ArrayLike) -> NDArray[np.float64]:
    """Factor on the learning rate at time t that an average emulates: ``w(t) = 1 - P(t)``.

    Args:
        profile: An average of any kind.
        t: Times in images, any shape.

    Example:
        >>> from edm2lite.ema.profile import Window
        >>> multiplier(Window(1000, 4000), [2000, 3000, 3500, 4000])
        array([1. , 1. , 0.5, 0. ])
    """
    return 1 - profile.cumulative(np.asarray(t, np.float64))


def emulated_schedule(profile: Profile) -> EmulatedSchedule:
    """The numbers of the schedule that an average emulates.

    Args:
        profile: An average of any kind.

    Example:
        >>> from edm2lite.ema.decays import NamedDecay
        >>> schedule = emulated_schedule(NamedDecay.parse("cosine:0.2").at(1000))
        >>> f"{schedule.halves_at:.3f} {schedule.budget:.3f} {schedule.linear_decay:.3f}"
        '0.900 0.900 0.200'
    """
    end = float(profile.nimg)
    low, high = 0.0, end
    for _ in range(60):
        middle = (low + high) / 2
        is_above = float(multiplier(profile, middle)) > 0.5
        low, high = (middle, high) if is_above else (low, middle)
    fine = end * (1 - np.geomspace(1e-4, 0.999, 200))
    t, weights = quadrature_nodes([end], end, [*kinks(profile), *fine])
    budget = float(multiplier(profile, t) @ weights) / end
    linear = 2 * (1 - budget)
    return EmulatedSchedule(high / end, budget, linear if linear <= 1 + 1e-9 else None)
