"""EMA lengths in the units that people use: gamma, sigma_rel, half-life, decay, window.

Three kinds of averages are meant by these: the power function of Eq. 1, the EMA of constant decay,
and the plain mean of a window. None is a case of another (but that gamma = 0 is the window of the
whole run), so that "as long as" needs a measure of length. Three are common; with the age of a
weight, the training time from it until now, as a fraction of the training time so far:

    measure                  power function               half-life h   window w
    width   std of the age   Eq. 123, sigma_rel           h / ln 2      w / sqrt(12)
    mean    of the age       1 / (gamma + 2)              h / ln 2      w / 2
    median  of the age       1 - 2 ** (-1 / (gamma + 1))  h             w / 2

For large gamma the power function becomes the exponential of rate gamma + 1, and the three agree on
its half-life.

Note [finite run]: an EMA of constant decay is measured as if training had no beginning, so that its
length does not depend on how long it ran. A real one starts from the initial weights, and still
holds the share ``initial_share`` of them; its median is the same. NumPy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from edm2lite.ema.profile import (
    SIGMA_REL_MAX,
    decay_to_half_life,
    gamma_to_sigma_rel,
    sigma_rel_to_gamma,
)

Measure = Literal["width", "mean", "median"]
MEASURES: tuple[Measure, ...] = ("width", "mean", "median")
HALF_LIFE: dict[Measure, float] = {"width": math.log(2), "mean": math.log(2), "median": 1.0}
"""Half-life of an EMA of constant decay / its measure."""
WINDOW: dict[Measure, float] = {"width": 12**0.5, "mean": 2.0, "median": 2.0}
"""Width of a window / its measure."""


@dataclass(frozen=True)
class Length:
    """A power-function average, and how long others are that are as long by one measure.

    Lengths are fractions of the training time so far; methods that take ``nimg`` return images (or
    whatever ``nimg`` and ``batch_size`` are counted in: tokens, updates).

    Attributes:
        gamma: Exponent, >= 0.
        by: The measure in which half-life and window agree with it.
    """

    gamma: float
    by: Measure = "width"

    def __post_init__(self) -> None:
        gamma_to_sigma_rel(self.gamma)
        if self.by not in MEASURES:
            raise ValueError(f"by must be one of {', '.join(MEASURES)}, got {self.by!r}")

    @classmethod
    def of_sigma_rel(cls, sigma_rel: float, by: Measure = "width") -> Length:
        """The average of relative width ``sigma_rel``, in (0, 0.2887)."""
        return cls(float(sigma_rel_to_gamma(sigma_rel)), by)

    @classmethod
    def of_half_life(cls, half_life: float, nimg: float, by: Measure = "width") -> Length:
        """The power function as long, at ``nimg``, as the EMA that halves every ``half_life``."""
        return cls(_gamma_of("half-life", half_life / nimg, HALF_LIFE, by), by)

    @classmethod
    def of_decay(
        cls, decay: float, nimg: float, batch_size: float, by: Measure = "width"
    ) -> Length:
        """The power function as long, at ``nimg``, as the EMA that keeps ``decay`` per update.

        Args:
            decay: In (0, 1), applied once per ``batch_size`` images.
        """
        return cls.of_half_life(decay_to_half_life(decay, batch_size), nimg, by)

    @classmethod
    def of_window(cls, window: float, nimg: float, by: Measure = "width") -> Length:
        """The power function as long, at ``nimg``, as the mean of the last ``window``."""
        return cls(_gamma_of("window", window / nimg, WINDOW, by), by)

    @property
    def sigma_rel(self) -> float:
        """Standard deviation of the age under the power function (Eq. 123)."""
        return measure(self.gamma, "width")

    @property
    def mean_age(self) -> float:
        """How far before now the centre of mass of the power function lies."""
        return measure(self.gamma, "mean")

    @property
    def median_age(self) -> float:
        """Half of the power function is younger than this."""
        return measure(self.gamma, "median")

    @property
    def half_life(self) -> float:
        """Half-life of the EMA of constant decay that is as long."""
        return HALF_LIFE[self.by] * measure(self.gamma, self.by)

    @property
    def window(self) -> float:
        """Width of the window that is as long; at most 1."""
        return min(WINDOW[self.by] * measure(self.gamma, self.by), 1.0)

    @property
    def initial_share(self) -> float:
        """What that EMA still holds of the initial weights. Note [finite run]."""
        return float(2 ** (-1 / self.half_life))

    def decay(self, nimg: float, batch_size: float) -> float:
        """What that EMA keeps of itself per update at ``nimg``: ``2 ** (-batch_size / h)``."""
        if not (nimg > 0 and batch_size > 0):
            raise ValueError(
                f"nimg and batch_size must be positive, got {nimg:g} and {batch_size:g}"
            )
        return float(2 ** (-batch_size / (self.half_life * nimg)))


def measure(gamma: float, by: Measure) -> float:
    """Length of the power function by a measure, as a fraction of the training time."""
    if by == "width":
        return float(gamma_to_sigma_rel(gamma))
    if by == "mean":
        return 1 / (gamma + 2)
    return -math.expm1(-math.log(2) / (gamma + 1))


def _gamma_of(name: str, length: float, per_measure: dict[Measure, float], by: Measure) -> float:
    """Exponent of the power function as long as ``length``, given as a fraction."""
    scale = per_measure[by]
    longest = scale * measure(0.0, by)
    if not 0 < length <= longest * (1 + 1e-12):  # rounding of the whole run's window
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
