"""Tails of influences: how well their variance is known, and what that does to an interval.

An interval is made of the variance of the influences, which is an estimate itself. Its relative
variance is (kurtosis - 1) / N: where a few images move the metric as much as all others together,
the variance is mostly too small and seldom far too large, and intervals that take it for granted
cover 60 to 90 %. So the normal quantile gives way to Student's, with the degrees of freedom that
the kurtosis leaves; the limit on the long side of a skewed distribution is moved out; and where all
of this is a guess, :attr:`Tails.are_heavy` says so. ``benchmarks/intervals.py`` measures what it
covers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import special

from edm2lite.metrics.moments import Array

_FEW = 20.0
"""Degrees of freedom below which tails are called heavy."""

_MANY = 100.0
"""Degrees of freedom from which the variance is as good as known."""


@dataclass(frozen=True)
class Tails:
    """Skewness and kurtosis of the influences of N images.

    Attributes:
        num: Number of images.
        skewness: Third moment over the 3/2 power of the second.
        kurtosis: Fourth moment over the square of the second: 3 of a normal distribution.

    Example:
        >>> import numpy as np
        >>> normal = Tails.of(np.random.default_rng(0).standard_normal((1, 5000)))
        >>> normal.are_heavy, normal.widening
        (False, 1.0)
        >>> outlier = Tails.of(np.array([[0.1, -0.1] * 50 + [9.0]]))
        >>> outlier.are_heavy, outlier.widening > 2
        (True, True)
    """

    num: int
    skewness: float
    kurtosis: float

    @classmethod
    def of(cls, influences: Array) -> Tails:
        """Tails of the first row of influences [J, N]; those of a constant are a coin's."""
        first = influences[0]
        offsets = first - first.mean()
        square = float((offsets**2).mean())
        if square <= 0:
            return cls(len(first), 0.0, 1.0)
        unit = offsets / math.sqrt(square)
        return cls(len(first), float((unit**3).mean()), float((unit**4).mean()))

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the variance: N / (kurtosis - 1), at least 2.

        That is half of 2 N / (kurtosis - 1), which an exact kurtosis would leave: that of a sample
        falls short of it where tails are heavy.
        """
        return max(2.0, self.num / max(self.kurtosis - 1, 1e-9))

    @property
    def are_heavy(self) -> bool:
        """Whether so few images decide that an interval is a guess: below 20 degrees of freedom."""
        return self.freedom < _FEW

    @property
    def certainty(self) -> float:
        """How well the variance is known, from 0 to 1, which is reached at 100 degrees of freedom.

        Intervals then are those of a known variance. Of the noise of influences this share is taken
        off, see :mod:`edm2lite.metrics.influence`.
        """
        return min(1.0, self.freedom / _MANY)

    @property
    def widening(self) -> float:
        """Factor of an interval's width: Student's quantile over that of 100 degrees of freedom."""
        return max(1.0, _quantile(self.freedom) / _quantile(_MANY))

    @property
    def stretch(self) -> float:
        """Further factor of the half of the interval on the long side of the distribution.

        By the first term of the Edgeworth series of a mean divided by its estimated deviation, the
        quantile t grows by ``|skewness| (1 + 2 t**2) / (6 sqrt(N))``, where the variance is not
        known well.
        """
        t = _quantile(self.freedom)
        shift = abs(self.skewness) * (1 + 2 * t**2) / (6 * math.sqrt(self.num))
        return 1 + (1 - self.certainty) * shift / t


def _quantile(freedom: float) -> float:
    return float(special.stdtrit(freedom, 0.975))


def heavy_words(names: str) -> str:
    """What to say of values whose influences have heavy tails.

    Args:
        names: What the values are of.

    Example:
        >>> heavy_words("FD")
        'A few images decide the interval of FD: it may be too narrow; take more images.'
    """
    return f"A few images decide the interval of {names}: it may be too narrow; take more images."
