"""EMA lengths in the units that people use: gamma, sigma_rel, half-life, decay, window.

These describe three kinds of averages: the power function (Eq. 1), the EMA of constant decay, and
the plain mean of a window. None is a special case of another (except that gamma = 0 is the window
of the whole run), so "equally long" needs a measure of length. Three are common. Let the age of a
weight be the training time from that weight until now, as a fraction of the training time so far:

    measure                  power function               half-life h   window w
    width   std of the age   Eq. 123, sigma_rel           h / ln 2      w / sqrt(12)
    mean    of the age       1 / (gamma + 2)              h / ln 2      w / 2
    median  of the age       1 - 2 ** (-1 / (gamma + 1))  h             w / 2

A decay of the learning rate over the last share D of the run is an average too, with the measures
of :mod:`edm2lite.ema.decays`; for a linear decay they are those of a window. Decays are called
cooldowns here, as ``decay`` is what an EMA keeps per update. Three methods average by a power
function under other names:

    half-life f t that grows with the time t ("anytime", arXiv 2602.03702)    ln 2 / f = gamma + 1
    schedule-free with weights t**r at a constant rate (arXiv 2405.15682)     r = gamma
    schedule-free with c = C (1 - beta1) / t (arXiv 2507.09846)               c = gamma + 1

The latter two also change the course of training, which no average does. For large gamma the power
function becomes the exponential of rate gamma + 1, and the three measures agree on its half-life.

Note [finite run]: an EMA of constant decay is measured as if training had no beginning, so that its
length does not depend on how long it ran. A real one starts from the initial weights and still
holds the share ``initial_share`` of them; its median is the same. NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

from edm2lite.ema.decays import NamedDecay
from edm2lite.ema.formulas import decay_to_half_life, gamma_to_sigma_rel, sigma_rel_to_gamma
from edm2lite.ema.measures import HALF_LIFE, WINDOW, gamma_of, measure, measure_of
from edm2lite.ema.measures import MEASURES as MEASURES
from edm2lite.ema.measures import Measure as Measure


@dataclass(frozen=True)
class Length:
    """The length of a power-function average, and of other averages that are equally long.

    Lengths are fractions of the training time so far. Where a method takes ``nimg`` or
    ``batch_size``, both may count anything: images, tokens, updates.

    Attributes:
        gamma: Exponent of the power function, >= 0.
        by: Measure by which averages count as equally long: ``width``, ``mean`` or ``median``.

    Raises:
        ValueError: If ``gamma`` is negative or not finite, or ``by`` is not a measure.

    Example:
        >>> length = Length.of_decay(0.9999, nimg=2**26, batch_size=256)
        >>> round(length.sigma_rel, 4), round(length.gamma, 2)
        (0.0381, 23.2)
        >>> round(Length.of_sigma_rel(0.10).half_life, 4)  # as a fraction of the training time
        0.0693
        >>> round(Length.of_anytime(0.05).sigma_rel, 4), round(Length.of_schedule_free(5).gamma, 2)
        (0.0629, 4)
        >>> round(Length.of_cooldown("cosine:0.3").sigma_rel, 4)
        0.0653
    """

    gamma: float
    by: Measure = "width"

    def __post_init__(self) -> None:
        gamma_to_sigma_rel(self.gamma)
        if self.by not in MEASURES:
            raise ValueError(f"by must be one of {', '.join(MEASURES)}, got {self.by!r}")

    @classmethod
    def of_sigma_rel(cls, sigma_rel: float, by: Measure = "width") -> Length:
        """The length of the power function of EMA length ``sigma_rel``, in (0, 0.2887)."""
        return cls(float(sigma_rel_to_gamma(sigma_rel)), by)

    @classmethod
    def of_half_life(cls, half_life: float, nimg: float, by: Measure = "width") -> Length:
        """The length at ``nimg`` of the EMA whose weights halve every ``half_life`` images.

        Args:
            half_life: Half-life in images, > 0.
            nimg: Training time in images, > 0.
            by: Measure by which the power function and this EMA are equally long.

        Raises:
            ValueError: If no power function is that long.
        """
        return cls(gamma_of("half-life", half_life / nimg, HALF_LIFE, by), by)

    @classmethod
    def of_decay(
        cls, decay: float, nimg: float, batch_size: float, by: Measure = "width"
    ) -> Length:
        """The length at ``nimg`` of the EMA that keeps ``decay`` of itself per update.

        Args:
            decay: Weight of the previous average in an update, in (0, 1).
            nimg: Training time in images, > 0.
            batch_size: Images between two updates of the average, > 0.
            by: Measure by which the power function and this EMA are equally long.

        Raises:
            ValueError: If the decay is not between 0 and 1, or no power function is that long.
        """
        return cls.of_half_life(decay_to_half_life(decay, batch_size), nimg, by)

    @classmethod
    def of_window(cls, window: float, nimg: float, by: Measure = "width") -> Length:
        """The length at ``nimg`` of the plain mean of the last ``window`` images.

        Args:
            window: Width of the window in images, > 0.
            nimg: Training time in images, > 0.
            by: Measure by which the power function and the window are equally long.

        Raises:
            ValueError: If no power function is that long.
        """
        return cls(gamma_of("window", window / nimg, WINDOW, by), by)

    @classmethod
    def of_cooldown(cls, decay: str, nimg: float | None = None, by: Measure = "width") -> Length:
        """The length of the average that emulates a decay of the learning rate.

        Args:
            decay: Name of the decay, such as ``cosine:0.2``.
            nimg: Training time in images, for a decay whose length is in images.
            by: Measure by which the power function and this average are equally long.

        Raises:
            ValueError: If the decay has no such name, or no power function is that long.
        """
        named = NamedDecay.parse(decay)
        if named.in_images and nimg is None:
            raise ValueError(f"the length of {decay} depends on the training time; give it in nimg")
        length = named.length / (nimg or 1) if named.in_images else named.length
        return cls(gamma_of("decay", length, {by: 1 / measure_of(named.shape, by)}, by), by)

    @classmethod
    def of_anytime(cls, share: float, by: Measure = "width") -> Length:
        """The length of the EMA whose half-life is a fixed share of the training time so far.

        Args:
            share: Half-life divided by the training time so far, in (0, ln 2].
            by: Measure for other kinds of averages.

        Raises:
            ValueError: If the share is out of range.
        """
        if not 0 < share <= math.log(2) * (1 + 1e-12):
            raise ValueError(
                f"the half-life must be a share of the training time up to ln 2 = 0.6931, got"
                f" {share:g}"
            )
        return cls(max(math.log(2) / share - 1, 0.0), by)

    @classmethod
    def of_schedule_free(cls, c: float, by: Measure = "width") -> Length:
        """The length of the average in schedule-free training with ``c_t = c / t``.

        Weights ``t**r`` are c = r + 1; the refined form has c = C (1 - beta1).

        Args:
            c: Numerator of c_t, at least 1.
            by: Measure for other kinds of averages.

        Raises:
            ValueError: If ``c`` is below 1 or not finite.
        """
        if not 1 <= c < math.inf:
            raise ValueError(f"C (1 - beta1), or r + 1, must be at least 1, got {c:g}")
        return cls(c - 1, by)

    @property
    def anytime(self) -> float:
        """Half-life at each time as a share of the training time until then: ln 2 / (gamma + 1)."""
        return math.log(2) / (self.gamma + 1)

    def cooldown(self, shape: str = "linear") -> float | None:
        """Length of the decay that is equally long, as a share of the run; None if above 1.

        Args:
            shape: Shape of the decay, a name in :mod:`edm2lite.ema.decays` (power:K for powers).

        Raises:
            ValueError: If there is no such shape.
        """
        named = NamedDecay.parse(f"{shape}:1").shape
        share = measure(self.gamma, self.by) / measure_of(named, self.by)
        return share if share <= 1 + 1e-12 else None

    @property
    def sigma_rel(self) -> float:
        """Standard deviation of the age under the power function (Eq. 123)."""
        return measure(self.gamma, "width")

    @property
    def mean_age(self) -> float:
        """Mean age under the power function: the distance from now to its center of mass."""
        return measure(self.gamma, "mean")

    @property
    def median_age(self) -> float:
        """Median age under the power function: half of its weight is younger than this."""
        return measure(self.gamma, "median")

    @property
    def half_life(self) -> float:
        """Half-life of the EMA of constant decay that is equally long."""
        return HALF_LIFE[self.by] * measure(self.gamma, self.by)

    @property
    def window(self) -> float:
        """Width of the window that is equally long, at most 1."""
        return min(WINDOW[self.by] * measure(self.gamma, self.by), 1.0)

    @property
    def initial_share(self) -> float:
        """Share of the initial weights that this EMA still holds; see Note [finite run]."""
        return float(2 ** (-1 / self.half_life))

    def decay(self, nimg: float, batch_size: float) -> float:
        """Decay per update of the equally long EMA: ``2 ** (-batch_size / half-life)``.

        Args:
            nimg: Training time in images, > 0.
            batch_size: Images between two updates of the average, > 0.

        Raises:
            ValueError: If one of them is not positive.
        """
        if not (nimg > 0 and batch_size > 0):
            raise ValueError(
                f"nimg and batch_size must be positive, got {nimg:g} and {batch_size:g}"
            )
        return float(2 ** (-batch_size / (self.half_life * nimg)))


def widths_and_exponents(
    sigma_rels: Sequence[float] | None, gammas: Sequence[float] | None, uniform: bool = False
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The lengths of tracked averages, given in one of the two forms, in both.

    Args:
        sigma_rels: EMA lengths, each in (0, 0.2887). [default: 0.05 and 0.10]
        gammas: Exponents >= 0, in place of ``sigma_rels``.
        uniform: Whether to add the plain mean of the run, gamma = 0.

    Returns:
        EMA lengths (sigma_rel) and exponents (gamma).

    Raises:
        ValueError: If both are given, there is no length, one is out of range, or two are equal to
            5 decimals of sigma_rel, as which they appear in file names.

    Example:
        >>> widths_and_exponents(None, [0.0])
        ((0.28867513459481287,), (0.0,))
    """
    if sigma_rels is not None and gammas is not None:
        raise ValueError("give either sigma_rels or gammas, not both")
    for name, given in (("sigma_rels", sigma_rels), ("gammas", gammas)):
        if isinstance(given, Real | str):
            raise ValueError(f"{name} must be a list of lengths, got {given!r}; give [{given!r}]")
    if gammas is None:
        widths = tuple(map(float, (0.05, 0.10) if sigma_rels is None else sigma_rels))
        exponents = tuple(float(sigma_rel_to_gamma(s)) for s in widths)
    else:
        exponents = tuple(map(float, gammas))
        widths = tuple(float(gamma_to_sigma_rel(g)) for g in exponents)
    if uniform:
        widths, exponents = (*widths, float(gamma_to_sigma_rel(0.0))), (*exponents, 0.0)
    if not widths or len({f"{s:.5f}" for s in widths}) < len(widths):
        raise ValueError(
            f"lengths must be distinct to 5 decimals of sigma_rel and at least one, got {widths}"
        )
    return widths, exponents
