"""Finding the best EMA length in few evaluations.

The metric is smooth in ln sigma_rel, and with the same seeds at every length its noise moves the
whole curve more than its shape. So: five lengths over the range on a part of the images, parabola
steps round the lowest until neighbours are 20 % apart or cannot be told apart, and all images for
the lowest and its neighbours alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edm2lite.metrics.interval import alike, minimum
from edm2lite.metrics.moments import Array

COARSE = 5
MOST = 8
"""Lengths in all: the third of a grid of 25."""
_CLOSE = 1.2

Measure = Callable[[Sequence[float], int], tuple[Array, Array]]
"""(lengths, images) -> values [L] and covariance [L, L]; what was measured is not repeated."""


@dataclass(frozen=True)
class Search:
    """What a search did.

    Attributes:
        tried: All lengths, ascending, measured on ``few`` images.
        confirmed: Those measured on all images, ascending.
        few: Images of the search.
        num: Images of the confirmation.
    """

    tried: tuple[float, ...]
    confirmed: tuple[float, ...]
    few: int
    num: int

    @property
    def images(self) -> int:
        """Images in all; those of the search are used again."""
        return self.few * len(self.tried) + (self.num - self.few) * len(self.confirmed)


def search(measure: Measure, low: float, high: float, num: int, least: int) -> Search:
    """Search between two lengths.

    Args:
        measure: Of several lengths at once.
        low: Shortest length.
        high: Longest length.
        num: Images to confirm with.
        least: Images that the search itself takes at the least; it takes a quarter of ``num`` if
            that is more.
    """
    few = min(num, max(least, num // 4))
    tried = sorted(rounded(s) for s in np.geomspace(low, high, COARSE))
    while len(tried) < MOST:
        values, covariance = measure(tried, few)
        proposal = propose(np.asarray(tried), values, covariance)
        if proposal is None:
            break
        tried = sorted({*tried, rounded(proposal)})
    values, _ = measure(tried, few)
    lowest = int(values.argmin())
    confirmed = tuple(tried[max(0, lowest - 1) : lowest + 2])
    measure(confirmed, num)
    return Search(tuple(tried), confirmed, few, num)


def propose(lengths: Array, values: Array, covariance: Array) -> float | None:
    """The next length to try, or None when the minimum is known well enough."""
    lowest, last = int(values.argmin()), len(lengths) - 1
    left, right = max(0, lowest - 1), min(last, lowest + 1)
    near = set(alike(values, covariance))
    gaps = {i: lengths[i + 1] / lengths[i] for i in range(left, right)}
    if max(gaps.values()) <= _CLOSE or (max(gaps.values()) <= _CLOSE**2 and {left, right} <= near):
        return None
    place = float(minimum(lengths, values))
    # a step that lands on a known length teaches nothing: halve the wider gap instead
    if min(max(place / s, s / place) for s in lengths) < _CLOSE**0.5:
        i = max(gaps, key=lambda i: gaps[i])
        place = float(np.sqrt(lengths[i] * lengths[i + 1]))
    return place


def rounded(sigma_rel: float) -> float:
    """To four significant digits: a length that people can type."""
    return float(f"{sigma_rel:.4g}")
