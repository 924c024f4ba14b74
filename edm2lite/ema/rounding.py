"""What rounding does to stored averages: by the type of the file, and by the float32 tracker.

Both are given as factors B [K, m]: the rounding of ``sum_i x_i theta_i`` has the expected square
``|x @ B|**2``, relative to the mean square of the weights. NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edm2lite.ema.profile import PowerFunction

Array = NDArray[np.float64]

ROUNDING = {"float32": 2.5e-8, "float16": 2.05e-4, "bfloat16": 1.65e-3}
"""Relative RMS error of a number rounded to a type, ``0.42 * 2**-(mantissa bits + 1)``.

The mean over numbers of all magnitudes: rounding is uniform within half a spacing, and the spacing
is between ``2**-bits`` and half of that of the number.
"""


def stored_rounding(rounding: ArrayLike, response: Array) -> Array:
    """Factor [K, K] of the rounding of stored numbers; those that hardly moved round alike.

    Args:
        rounding: [K] or scalar, relative RMS error q of the stored numbers.
        response: [K, M] with ``|V_i - V_j|**2`` the expected squared difference of averages.
    """
    q = np.broadcast_to(np.asarray(rounding, np.float64), len(response))
    gram = response @ response.T
    square = np.diag(gram)
    moved = np.maximum(square[:, None] + square - 2 * gram, 0)
    scale = np.outer(q, q)
    values, vectors = np.linalg.eigh(scale * _alike(moved, scale))
    return vectors * np.sqrt(np.maximum(values, 0))


def tracker_rounding(
    sources: Sequence[PowerFunction], updates: int, nimg: float, lags: Array, moved: Array
) -> Array:
    """Factor [K, 2 K] of the error that float32 updates leave in averages.

    An update adds ``(1 - beta) (theta - average)`` and rounds the sum with a relative error q,
    which then decays: an average inherits ``(t'/t)**(gamma+1)`` of the error it had at t'.
    Independent errors of N updates come to the square ``q**2 N / (2 gamma + 3)``. Errors of
    neighbouring updates are alike as far as what they add is: with the correlation rho(l) over l
    updates, the square grows by ``1 + 2 sum_l rho(l)`` over the ``N / (gamma + 2)`` updates that an
    average remembers. What is still alike after all of these (weights that move straight on) is
    systematic: it comes to ``q N / (gamma + 2)``, and is shared with later averages until the
    spacing of the numbers changes, as ``sqrt(t'/t)``.

    Args:
        sources: K stored averages.
        updates: Updates until ``nimg``; 0 leaves nothing.
        lags: [L] numbers of updates, growing from 1.
        moved: [L] expected squared change of a weight over as many updates.
    """
    t = np.array([s.nimg for s in sources], np.float64)
    gamma = np.array([s.gamma for s in sources])
    count = updates / nimg * t  # updates that each average saw
    remembered = count / (gamma + 2)
    apart = np.geomspace(1, np.maximum(remembered, 1), 32)  # [32, K]
    step = np.minimum((gamma + 1) / np.maximum(count, 1), 1)  # 1 - beta
    rho = _alike(step**2 * np.interp(np.log(apart), np.log(lags), moved), ROUNDING["float32"] ** 2)
    always = rho.min(axis=0)
    fades = rho - always
    area = (np.diff(apart, axis=0) * (fades[1:] + fades[:-1]) / 2).sum(axis=0)
    grown = 1 + fades[0] + 2 * area
    random, systematic = np.zeros((2, len(t), len(t)))
    for g in np.unique(gamma):
        own = np.flatnonzero(gamma == g)
        own = own[np.argsort(t[own], kind="stable")]
        ends, block = t[own], np.ix_(own, own)
        kept = np.append(0, ends[:-1]) / ends
        new = np.sqrt(count[own] * grown[own] / (2 * g + 3) * (1 - kept ** (2 * g + 3)))
        earlier = np.minimum(ends / ends[:, None], 1)
        random[block] = np.tril(earlier ** (g + 1)) * new
        shared = np.tril(np.sqrt(np.diff(ends, prepend=0) / ends[:, None]))
        systematic[block] = shared * (np.sqrt(always) * remembered)[own][:, None]
    return ROUNDING["float32"] * np.concatenate([random, systematic], axis=1)


def _alike(moved: Array, scale: ArrayLike) -> Array:
    """Correlation of the rounding errors of two numbers whose expected squared difference is given.

    Two numbers whose true values are closer than the spacing ``d = sqrt(12) q`` of the type round
    alike. The error is a sawtooth in the value, so that over normal movements of variance D two
    errors correlate by ``sum_k 6 / (pi k)**2 exp(-2 (pi k / d)**2 D)``. The elements of a network
    differ widely in speed: the mean over exponentially distributed D, with ``r**2 = D / 6 q**2``,
    is ``1 + 3 r**2 - 3 r coth(1 / r)``, which falls as ``1 / 15 r**2``.

    Args:
        moved: D, any shape.
        scale: q**2, broadcast with it.
    """
    r = np.sqrt(moved / (6 * np.maximum(scale, 1e-300)))
    near = np.clip(r, 1e-9, 30)  # beyond, the terms cancel
    return np.where(
        r < 30, 1 + 3 * near**2 - 3 * near / np.tanh(1 / near), 1 / (15 * np.maximum(r, 30) ** 2)
    )
