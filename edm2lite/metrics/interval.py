"""Intervals for the metric and for the place of its minimum, and which lengths are equally good.

Every cell is measured on the same seeds, so that what the seeds do to one they do to all: the
metrics are resampled together, from their joint covariance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edm2lite.metrics.moments import Array

LEVEL = 0.95
_Z = 1.959963984540054
_DRAWS = 4000


@dataclass(frozen=True)
class Verdict:
    """What a curve over the EMA length says.

    Attributes:
        best: Index of the least value.
        place: sigma_rel where a parabola through the lowest points is least.
        low, high: 95 % interval of that place.
        open_low, open_high: Whether it may lie beyond the shortest or the longest length.
        alike: Indices of lengths that cannot be told apart from the best one.
    """

    best: int
    place: float
    low: float
    high: float
    open_low: bool
    open_high: bool
    alike: tuple[int, ...]


def interval(values: Array, covariance: Array) -> tuple[Array, Array]:
    """95 % limits of each value: of its expectation at this number of images."""
    half = _Z * np.sqrt(np.diag(covariance))
    return values - half, values + half


def alike(values: Array, covariance: Array) -> tuple[int, ...]:
    """The indices whose paired difference from the least value may be zero."""
    lowest = int(values.argmin())
    spread = np.diag(covariance)
    variance = spread + spread[lowest] - 2 * covariance[lowest]
    near = values - values[lowest] <= _Z * np.sqrt(np.maximum(variance, 0))
    return tuple(int(i) for i in np.flatnonzero(near))


def resample(values: Array, covariance: Array, seed: int = 0) -> NDArray[np.float64]:
    """[4000, L] values as other seeds would give them."""
    lengths, vectors = np.linalg.eigh(covariance)
    factor = vectors * np.sqrt(np.maximum(lengths, 0))
    draws = np.random.default_rng(seed).standard_normal((_DRAWS, len(values)))
    return values + draws @ factor.T


def minimum(lengths: Array, values: Array) -> Array:
    """[...] place of the minimum of curves [..., L] over ascending ``lengths``.

    A parabola in ln sigma_rel through the lowest point and its neighbours; an end of the curve
    where that is lowest.
    """
    x, last = np.log(lengths), len(lengths) - 1
    at = values.argmin(axis=-1)
    if last < 2:
        return lengths[at]
    middle = np.clip(at, 1, last - 1)

    def y(index: NDArray[np.int64]) -> Array:
        return np.take_along_axis(values, index[..., None], -1)[..., 0]

    left, right = x[middle - 1] - x[middle], x[middle + 1] - x[middle]
    rise_left, rise_right = y(middle - 1) - y(middle), y(middle + 1) - y(middle)
    down, up = left * rise_right, right * rise_left
    bottom = x[middle] + 0.5 * (left * down - right * up) / np.where(down == up, np.inf, down - up)
    bottom = np.clip(bottom, x[middle - 1], x[middle + 1])
    return np.exp(np.where(at == middle, bottom, x[at]))


def judge(lengths: Sequence[float], values: Array, covariance: Array) -> Verdict:
    """The verdict on a curve over ascending lengths."""
    grid = np.asarray(lengths)
    places = minimum(grid, resample(values, covariance))
    low, high = np.quantile(places, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Verdict(
        best=int(values.argmin()),
        place=float(minimum(grid, values)),
        low=float(low),
        high=float(high),
        open_low=bool(low <= grid[0] * (1 + 1e-9)),
        open_high=bool(high >= grid[-1] * (1 - 1e-9)),
        alike=alike(values, covariance),
    )
