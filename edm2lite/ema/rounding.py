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
    """Factor [K, K] of the rounding of stored numbers.

    Two numbers whose true values are closer than the spacing ``d = sqrt(12) q`` of the type round
    alike. The error is a sawtooth in the value, so that over normal movements of variance D two
    errors correlate by ``sum_k 6 / (pi k)**2 exp(-2 (pi k / d)**2 D)``. The elements of a network
    differ widely in speed: the mean over exponentially distributed D, with ``r**2 = D / 6 q**2``,
    is ``1 + 3 r**2 - 3 r coth(1 / r)``, which falls as ``1 / 15 r**2``.

    Args:
        rounding: [K] or scalar, relative RMS error q of the stored numbers.
        response: [K, M] with ``|V_i - V_j|**2`` the expected squared difference D of averages.
    """
    q = np.broadcast_to(np.asarray(rounding, np.float64), len(response))
    gram = response @ response.T
    square = np.diag(gram)
    moved = np.maximum(square[:, None] + square - 2 * gram, 0)
    scale = np.outer(q, q)
    r = np.sqrt(moved / (6 * np.maximum(scale, 1e-300)))
    near = np.clip(r, 1e-9, 30)  # beyond, the terms cancel
    alike = np.where(
        r < 30, 1 + 3 * near**2 - 3 * near / np.tanh(1 / near), 1 / (15 * np.maximum(r, 30) ** 2)
    )
    values, vectors = np.linalg.eigh(scale * alike)
    return vectors * np.sqrt(np.maximum(values, 0))


def tracker_rounding(
    sources: Sequence[PowerFunction], updates: int, nimg: float
) -> tuple[Array, Array]:
    """Factors [K, K] and [K, G] of the error that float32 updates leave in G tracked lengths.

    The error of an update, q of the weights, decays as the average forgets, so that an average
    inherits ``(t'/t)**(gamma+1)`` of the error it had at t'. Independent errors add up to the first
    factor. Where an average moves by the same amount in every update they are all alike, and
    ``q updates / (gamma + 2)`` is the most they come to: the second factor.
    """
    t = np.array([s.nimg for s in sources], np.float64)
    gamma = np.array([s.gamma for s in sources])
    per_image = updates / nimg
    random = np.zeros((len(t), len(t)))
    for g in np.unique(gamma):
        own = np.flatnonzero(gamma == g)
        own = own[np.argsort(t[own], kind="stable")]
        ends = t[own]
        kept = np.append(0, ends[:-1]) / ends
        new = np.sqrt(per_image * ends / (2 * g + 3) * (1 - kept ** (2 * g + 3)))
        inherited = np.tril(np.minimum(ends / ends[:, None], 1) ** (g + 1))
        random[np.ix_(own, own)] = inherited * new
    systematic = (gamma[:, None] == np.unique(gamma)) * (per_image * t / (gamma + 2))[:, None]
    return ROUNDING["float32"] * random, ROUNDING["float32"] * systematic
