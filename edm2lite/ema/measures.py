"""Measures in which averages of different kinds are equally long, see edm2lite.ema.lengths."""

from __future__ import annotations

import math
from typing import Literal

from edm2lite.ema.decays import DecayShape
from edm2lite.ema.formulas import SIGMA_REL_MAX, gamma_to_sigma_rel, sigma_rel_to_gamma

Measure = Literal["width", "mean", "median"]
MEASURES: tuple[Measure, ...] = ("width", "mean", "median")
HALF_LIFE: dict[Measure, float] = {"width": math.log(2), "mean": math.log(2), "median": 1.0}
"""Half-life of an EMA of constant decay, divided by its length in each measure."""
WINDOW: dict[Measure, float] = {"width": 12**0.5, "mean": 2.0, "median": 2.0}
"""Width of a window, divided by its length in each measure."""


def measure(gamma: float, by: Measure) -> float:
    """Length of a power function in one measure, as a fraction of the training time.

    Args:
        gamma: Exponent, >= 0.
        by: ``width``, ``mean`` or ``median``.

    Example:
        >>> measure(6.0, "mean")
        0.125
    """
    if by == "width":
        return float(gamma_to_sigma_rel(gamma))
    if by == "mean":
        return 1 / (gamma + 2)
    return -math.expm1(-math.log(2) / (gamma + 1))


def measure_of(shape: DecayShape, by: Measure) -> float:
    """Length in one measure of the average that emulates a decay over the whole run.

    Args:
        shape: Shape of the decay.
        by: ``width``, ``mean`` or ``median``.

    Example:
        >>> measure_of(DecayShape("linear"), "mean")
        0.5
    """
    return {"width": shape.deviation, "mean": shape.mean_age, "median": shape.median_age}[by]


def gamma_of(name: str, length: float, per_measure: dict[Measure, float], by: Measure) -> float:
    """Exponent of the power function that is as long as an average of another kind.

    Args:
        name: Kind of the other average, for the error message.
        length: Half-life, window or decay as a fraction of the training time.
        per_measure: That length, divided by the length in a measure: ``HALF_LIFE`` or ``WINDOW``.
        by: Measure in which both are equally long.

    Raises:
        ValueError: If no power function is that long.

    Example:
        >>> round(gamma_of("window", 0.5, WINDOW, "mean"), 6)
        2.0
    """
    scale = per_measure[by]
    longest = scale * measure(0.0, by)
    if not 0 < length <= longest * (1 + 1e-12):  # a window of the whole run, rounded
        raise ValueError(
            f"a {name} must be positive and at most {longest:.4g} of the training time, got"
            f" {length:.4g} of it: no power function is longer (by {by}) than the mean of the"
            " whole run; measure at a later time, or give a shorter one"
        )
    value = length / scale
    if by == "width":
        return float(sigma_rel_to_gamma(value)) if value < SIGMA_REL_MAX else 0.0
    if by == "mean":
        return max(1 / value - 2, 0.0)
    return max(-math.log(2) / math.log1p(-value) - 1, 0.0)
