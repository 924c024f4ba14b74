"""The rounding errors of stored averages: of the type of the file, and of the float32 tracker.

Both are given as factors B [K, m]: the rounding error of ``sum_i x_i theta_i`` has the expected
square ``|x @ B|**2``, relative to the mean square of the weights. NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edm2lite.ema.profile import Stored

Array = NDArray[np.float64]

ROUNDING = {"float32": 2.5e-8, "float16": 2.05e-4, "bfloat16": 1.65e-3}
"""Relative RMS error of a number rounded to a type, ``0.42 * 2**-(mantissa bits + 1)``.

This is the mean over numbers of all magnitudes: a rounding error is uniform within half a spacing,
and the spacing is between ``2**-bits`` and ``2**-(bits + 1)`` of the number.
"""


def stored_rounding(rounding: ArrayLike, response: Array) -> Array:
    """Factor [K, K] of the rounding of stored numbers.

    Averages that hardly differ have correlated rounding errors.

    Args:
        rounding: [K] or scalar, relative RMS error q of the stored numbers.
        response: [K, M] vectors V whose ``|V_i - V_j|**2`` is the expected squared difference of
            two averages.

    Example:
        >>> far_apart = np.array([[0.0], [1.0]])
        >>> factor = stored_rounding(1e-3, far_apart)
        >>> np.round(factor @ factor.T, 9)  # independent errors
        array([[1.e-06, 0.e+00],
               [0.e+00, 1.e-06]])
    """
    q = np.broadcast_to(np.asarray(rounding, np.float64), len(response))
    gram = response @ response.T
    square = np.diag(gram)
    moved = np.maximum(square[:, None] + square - 2 * gram, 0)
    scale = np.outer(q, q)
    values, vectors = np.linalg.eigh(scale * _error_correlation(moved, scale))
    factor: Array = vectors * np.sqrt(np.maximum(values, 0))
    return factor


def tracker_rounding(
    sources: Sequence[Stored], updates: int, nimg: float, lags: Array, moved: Array
) -> Array:
    """Factor [K, 2 K] of the rounding error that the tracker's float32 updates leave in averages.

    An update adds ``(1 - beta) (theta - average)`` and rounds the sum with a relative error q,
    which then decays: an average inherits ``(t'/t)**(gamma+1)`` of the error that it had at t'.
    Independent errors of N updates add up to the square ``q**2 N / (2 gamma + 3)``. Errors of
    nearby updates are correlated as far as the increments are equal. With the correlation rho(l) of
    errors l updates apart, the square grows by ``1 + 2 sum_l rho(l)``, summed over the
    ``N / (gamma + 2)`` updates that an average remembers. The correlation that remains beyond these
    (weights that move in a straight line) is systematic: it contributes ``q N / (gamma + 2)``,
    shared with later averages, as ``sqrt(t'/t)``, until the spacing of the numbers changes. Raw
    weights have none of these errors.

    Args:
        sources: K stored averages.
        updates: Number of updates up to ``nimg``; with 0 the factor is 0.
        nimg: End of the run in images.
        lags: [L] numbers of updates, increasing from 1.
        moved: [L] expected squared change of a weight over so many updates.

    Example:
        >>> from edm2lite.ema.profile import PowerFunction
        >>> one = [PowerFunction(3.0, nimg=400)]
        >>> factor = tracker_rounding(one, 800, 400, np.array([1.0]), np.array([1.0]))
        >>> round(float((factor**2).sum()) / ROUNDING["float32"] ** 2, 3)  # 800 / (2 * 3 + 3)
        88.889
    """
    t = np.array([s.nimg for s in sources], np.float64)
    gamma = np.array([s.gamma for s in sources])
    count = updates / nimg * t  # updates that each average has seen
    remembered = count / (gamma + 2)
    apart = np.geomspace(1, np.maximum(remembered, 1), 32)  # [32, K]
    step = np.minimum((gamma + 1) / np.maximum(count, 1), 1)  # 1 - beta
    rho = _error_correlation(
        step**2 * np.interp(np.log(apart), np.log(lags), moved), ROUNDING["float32"] ** 2
    )
    always = rho.min(axis=0)
    fades = rho - always
    area = (np.diff(apart, axis=0) * (fades[1:] + fades[:-1]) / 2).sum(axis=0)
    grown = 1 + fades[0] + 2 * area
    random, systematic = np.zeros((2, len(t), len(t)))
    for g in np.unique(gamma[np.isfinite(gamma)]):
        track = np.flatnonzero(gamma == g)
        track = track[np.argsort(t[track], kind="stable")]
        ends, block = t[track], np.ix_(track, track)
        kept = np.append(0, ends[:-1]) / ends
        new = np.sqrt(count[track] * grown[track] / (2 * g + 3) * (1 - kept ** (2 * g + 3)))
        earlier = np.minimum(ends / ends[:, None], 1)
        random[block] = np.tril(earlier ** (g + 1)) * new
        shared = np.tril(np.sqrt(np.diff(ends, prepend=0) / ends[:, None]))
        systematic[block] = shared * (np.sqrt(always) * remembered)[track][:, None]
    return ROUNDING["float32"] * np.concatenate([random, systematic], axis=1)


def _error_correlation(moved: Array, scale: ArrayLike) -> Array:
    """Correlation of the rounding errors of two numbers, given their expected squared difference.

    Numbers that are closer than the spacing ``d = sqrt(12) q`` of the type have similar errors. The
    error is a sawtooth function of the value, so that for normally distributed differences of
    variance D two errors correlate by ``sum_k 6 / (pi k)**2 exp(-2 (pi k / d)**2 D)``. The elements
    of a network move at very different speeds: the mean over exponentially distributed D, with
    ``r**2 = D / 6 q**2``, is ``1 + 3 r**2 - 3 r coth(1 / r)``, which falls as ``1 / 15 r**2``.

    Args:
        moved: D, any shape.
        scale: q**2, of a shape that broadcasts with D.
    """
    r = np.sqrt(moved / (6 * np.maximum(scale, 1e-300)))
    near = np.clip(r, 1e-9, 30)  # for larger r the terms cancel
    correlation: Array = np.where(
        r < 30, 1 + 3 * near**2 - 3 * near / np.tanh(1 / near), 1 / (15 * np.maximum(r, 30) ** 2)
    )
    return correlation
