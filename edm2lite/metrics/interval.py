"""Intervals for a metric and for the place of its optimum, and which lengths are equally good.

Every length is measured on the same seeds, so that what the seeds do to one they do to all: the
values are resampled together, from their joint covariance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edm2lite.metrics.moments import Array

LEVEL = 0.95
"""Probability of an interval."""

_Z = 1.959963984540054
_DRAWS = 4000


@dataclass(frozen=True)
class Verdict:
    """What a curve over the EMA length says.

    Attributes:
        best: Index of the best value, that of the raw weights included.
        place: sigma_rel of the vertex of a parabola through the points around the best average.
        low, high: 95 % interval of that place, None if the metric has no intervals.
        open_low, open_high: Whether the place may lie beyond the shortest or the longest length.
        alike: Indices of values that cannot be told apart from the best one, itself included.
    """

    best: int
    place: float
    low: float | None
    high: float | None
    open_low: bool
    open_high: bool
    alike: tuple[int, ...]


def normal_limits(value: float, deviation: float) -> tuple[float, float]:
    """95 % limits of the expectation of a value with this standard deviation.

    Example:
        >>> low, high = normal_limits(5.0, 1.0)
        >>> round(low, 2), round(high, 2)
        (3.04, 6.96)
    """
    half = _Z * deviation
    return value - half, value + half


def wilson_limits(share: float, variance: float, num: int) -> tuple[float, float]:
    """95 % limits (Wilson's) of the expectation of a share; they lie between 0 and 1.

    A share p of variance v is taken for one of ``p (1 - p) / v`` independent images, and one that
    did not vary at all for one of all ``num`` images.

    Args:
        share: The share, between 0 and 1.
        variance: Variance of the share over seeds.
        num: Number of images.

    Example:
        >>> low, high = wilson_limits(1.0, 0.0, 100)
        >>> round(low, 3), round(high, 3)
        (0.963, 1.0)
    """
    spread = share * (1 - share)
    count = spread / variance if spread > 0 and variance > 0 else num
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z * math.sqrt(spread / count + _Z**2 / (4 * count**2)) / (1 + _Z**2 / count)
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def alike(values: Array, covariance: Array, lower_is_better: bool = True) -> tuple[int, ...]:
    """The indices of values that cannot be told apart from the best one, which is among them.

    All values are compared with each other at once. A value is worse if it exceeds another one by
    more than q times the standard deviation of their paired difference, where q is the 95 %
    quantile of the largest such ratio over all pairs if all expectations were equal: then nothing
    is called worse in 95 % of sweeps, however many values there are. What is worse is set aside,
    and the others are compared again, with the smaller q of fewer pairs.

    Args:
        values: [L] values.
        covariance: [L, L] covariance over seeds.
        lower_is_better: Whether the best value is the lowest.

    Example:
        >>> alike(np.array([3.0, 1.0, 1.1]), 0.01 * np.eye(3))
        (1, 2)
    """
    costs = values if lower_is_better else -values
    deviations = paired_deviations(covariance)
    certain = deviations == 0  # values that never vary: any difference between them is real
    scale = 1 / np.where(certain, np.inf, deviations)
    differences = costs[:, None] - costs
    excess = np.where(certain & (differences > 0), np.inf, differences * scale)
    noise = resample(np.zeros(len(costs)), covariance)
    kept = np.arange(len(costs))
    while len(kept) > 1:
        pairs = np.ix_(kept, kept)
        largest = _largest_ratios(noise[:, kept], scale[pairs])
        worse = excess[pairs].max(axis=1) > np.quantile(largest, LEVEL)
        if not worse.any():
            break
        kept = kept[~worse]
    return tuple(int(i) for i in kept)


def paired_deviations(covariance: Array) -> Array:
    """[L, L] standard deviations of the differences between values.

    It is infinite on the diagonal, and where two values vary together to within rounding.

    Example:
        >>> paired_deviations(np.array([[2.0, 1.0], [1.0, 2.0]])).round(3)
        array([[  inf, 1.414],
               [1.414,   inf]])
    """
    spread = np.diag(covariance)
    sums = spread[:, None] + spread
    variance = np.maximum(sums - 2 * covariance, 0)
    deviations: Array = np.where((variance <= 1e-12 * sums) & (sums > 0), np.inf, np.sqrt(variance))
    np.fill_diagonal(deviations, np.inf)
    return deviations


def _largest_ratios(noise: Array, scale: Array) -> Array:
    """[draws] largest difference of two columns of ``noise`` [draws, L] times ``scale`` [L, L]."""
    largest = np.zeros(len(noise))
    for i in range(noise.shape[1] - 1):
        apart = np.abs(noise[:, i + 1 :] - noise[:, i, None]) * scale[i, i + 1 :]
        np.maximum(largest, apart.max(axis=1), out=largest)
    return largest


def resample(values: Array, covariance: Array, seed: int = 0) -> NDArray[np.float64]:
    """[4000, L] values as other seeds would give them."""
    lengths, vectors = np.linalg.eigh(covariance)
    factor = vectors * np.sqrt(np.maximum(lengths, 0))
    draws = np.random.default_rng(seed).standard_normal((_DRAWS, len(values)))
    resampled: NDArray[np.float64] = values + draws @ factor.T
    return resampled


def minimum(lengths: Array, values: Array) -> Array:
    """[...] place of the minimum of curves [..., L] over ascending ``lengths`` [L].

    A parabola in ln sigma_rel goes through the lowest point and its neighbors; where the lowest
    point is an end of the curve, that is the place.

    Example:
        >>> lengths = np.array([0.05, 0.1, 0.2])
        >>> float(minimum(lengths, np.log(lengths / 0.08) ** 2).round(6))
        0.08
    """
    x, last = np.log(lengths), len(lengths) - 1
    at = values.argmin(axis=-1)
    if last < 2:
        ends: Array = lengths[at]
        return ends
    middle = np.clip(at, 1, last - 1)

    def y(index: NDArray[np.int64]) -> Array:
        taken: Array = np.take_along_axis(values, index[..., None], -1)[..., 0]
        return taken

    left, right = x[middle - 1] - x[middle], x[middle + 1] - x[middle]
    rise_left, rise_right = y(middle - 1) - y(middle), y(middle + 1) - y(middle)
    down, up = left * rise_right, right * rise_left
    bottom = x[middle] + 0.5 * (left * down - right * up) / np.where(down == up, np.inf, down - up)
    bottom = np.clip(bottom, x[middle - 1], x[middle + 1])
    place: Array = np.exp(np.where(at == middle, bottom, x[at]))
    return place


def judge(
    lengths: Sequence[float | None],
    values: Array,
    covariance: Array | None,
    lower_is_better: bool = True,
) -> Verdict:
    """The verdict on a curve over ascending lengths.

    Args:
        lengths: [L] EMA lengths sigma_rel, ascending; before them None, if the raw weights are to
            be compared too.
        values: [L] values of the metric.
        covariance: [L, L] covariance over seeds, or None if it is not known.
        lower_is_better: Whether the best value is the lowest.

    Example:
        >>> judge([0.05, 0.1, 0.2], np.array([3.0, 1.0, 2.0]), 1e-6 * np.eye(3)).alike
        (1,)
    """
    costs = values if lower_is_better else -values
    raw = int(lengths[0] is None)
    grid = np.asarray(lengths[raw:], dtype=np.float64)
    best, place = int(costs.argmin()), float(minimum(grid, costs[raw:]))
    if covariance is None:
        return Verdict(best, place, None, None, False, False, (best,))
    places = minimum(grid, resample(costs[raw:], covariance[raw:, raw:]))
    low, high = np.quantile(places, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Verdict(
        best=best,
        place=place,
        low=float(low),
        high=float(high),
        open_low=bool(low <= grid[0] * (1 + 1e-9)),
        open_high=bool(high >= grid[-1] * (1 - 1e-9)),
        alike=alike(costs, covariance),
    )
