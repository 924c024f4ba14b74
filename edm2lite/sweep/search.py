"""Finding the best EMA length in few evaluations.

The metric is smooth in ln sigma_rel, and with the same seeds at every length its noise moves the
whole curve more than its shape. So the search takes five lengths over the range on a part of the
images, makes parabola steps around the lowest until its neighbors are 20 % apart or cannot be told
apart, and spends all images on the lowest and its neighbors alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edm2lite.metrics.interval import minimum, normal_limits, paired_deviations
from edm2lite.metrics.moments import Array

COARSE = 5
"""Number of lengths that a search begins with."""

MOST = 8
"""Largest number of lengths in all: a third of a grid of 25."""

_CLOSE = 1.2

Measure = Callable[[Sequence[float], int], tuple[Array, Array | None]]
"""(lengths, number of images) -> values [L], the lower the better, and their covariance [L, L], or
None if it is not known; what was measured is not repeated."""


@dataclass(frozen=True)
class Search:
    """What a search did.

    Attributes:
        tried: All lengths, ascending, measured on ``few`` images.
        confirmed: Those measured on all images, ascending.
        few: Number of images of the search.
        num: Number of images of the confirmation.
    """

    tried: tuple[float, ...]
    confirmed: tuple[float, ...]
    few: int
    num: int

    @property
    def images(self) -> int:
        """Number of images in all; those of the search are used again."""
        return self.few * len(self.tried) + (self.num - self.few) * len(self.confirmed)


def search(measure: Measure, low: float, high: float, num: int, minimum_images: int) -> Search:
    """Find the length of the lowest value between two lengths.

    Args:
        measure: Function that measures several lengths at once.
        low: Shortest length.
        high: Longest length.
        num: Number of images to confirm with.
        minimum_images: Number of images below which values say little. The search itself takes a
            quarter of ``num``, and no fewer than this.

    Example:
        >>> def measure(lengths, num):
        ...     return np.log(np.array(lengths) / 0.08) ** 2, 1e-9 * np.eye(len(lengths))
        >>> found = search(measure, 0.02, 0.25, num=1000, minimum_images=100)
        >>> len(found.tried), found.images
        (8, 4250)
    """
    few = min(num, max(minimum_images, num // 4))
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


def propose(lengths: Array, values: Array, covariance: Array | None) -> float | None:
    """The next length to try, or None when the minimum is known well enough."""
    lowest, last = int(values.argmin()), len(lengths) - 1
    left, right = max(0, lowest - 1), min(last, lowest + 1)
    gaps = {i: lengths[i + 1] / lengths[i] for i in range(left, right)}
    widest = max(gaps.values())
    if widest <= _CLOSE or (widest <= _CLOSE**2 and _near(values, covariance, {left, right})):
        return None
    place = float(minimum(lengths, values))
    # a step that lands on a known length teaches nothing: halve the wider gap instead
    if min(max(place / s, s / place) for s in lengths) < _CLOSE**0.5:
        i = max(gaps, key=lambda i: gaps[i])
        place = float(np.sqrt(lengths[i] * lengths[i + 1]))
    return place


def _near(values: Array, covariance: Array | None, indices: set[int]) -> bool:
    """Whether each of these values may be the lowest: no verdict, but where to look next."""
    lowest = int(values.argmin())
    if covariance is None:
        return indices == {lowest}
    deviations = paired_deviations(covariance)[lowest]
    return all(values[i] <= normal_limits(values[lowest], deviations[i])[1] for i in indices)


def rounded(sigma_rel: float) -> float:
    """The length to four significant digits, so that people can type it.

    Example:
        >>> rounded(0.123456)
        0.1235
    """
    return float(f"{sigma_rel:.4g}")
