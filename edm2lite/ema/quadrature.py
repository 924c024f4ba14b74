"""Integrals over a training run, and what a memory does to their integrands. NumPy and SciPy."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammainc

Array = NDArray[np.float64]

_POINTS, _POINT_WEIGHTS = (
    0.5 * (v + o) for v, o in zip(np.polynomial.legendre.leggauss(3), (1, 0), strict=True)
)


def quadrature_nodes(times: ArrayLike, end: float) -> tuple[Array, Array]:
    """Times in (0, end) and their weights in images: Gauss-Legendre between all ``times``.

    Profiles are smooth between the ends of averages. Further breaks keep cells short compared
    with the age and with distance to the end, where the short averages live.
    """
    times = np.unique(np.append(np.asarray(times, np.float64), end))
    first = times[0]
    breaks = np.concatenate(
        [
            [0.0],
            first * np.geomspace(1 / 16, 1, 9),
            times,
            np.geomspace(first, end, 160),
            end - end * np.geomspace(1e-3, 0.1, 12),
        ]
    )
    breaks = np.unique(breaks)
    breaks = breaks[np.append(True, np.diff(breaks) > 1e-9 * end)]
    cell = np.diff(breaks)[:, None]
    return (breaks[:-1, None] + cell * _POINTS).ravel(), (cell * _POINT_WEIGHTS).ravel()


def remembered(values: Array, weights: Array, memory: float) -> Array:
    """Mean of ``f`` over the times that follow, ``int_0^inf f(t + a) exp(-a / m) da / m``.

    Noise of the moment t that is felt with this memory enters an average through this mean of the
    average's weights. f is 0 after the last cell. Exact where f is quadratic in each cell.

    Args:
        values: [K, M] f at the times of :func:`quadrature_nodes`.
        weights: [M] their weights, in images.
        memory: m > 0 in images.
    """
    within, felt, kept = _memory(weights.tobytes(), memory)
    inside = np.einsum("kcj,cpj->kcp", values.reshape(len(values), -1, len(_POINTS)), within)
    later = (inside[:, :, -1] @ kept)[:, :, None] * felt
    return (inside[:, :, :-1] + later).reshape(values.shape)


@functools.lru_cache(maxsize=16)
def _memory(weights: bytes, memory: float) -> tuple[Array, Array, Array]:
    """The parts of :func:`remembered` that do not depend on f; fits use few memories again.

    Returns:
        [C, 4, 3]: what f at the nodes of a cell adds to the mean from a node, or from the left
        edge, until the right edge; [C, 3]: how much of what follows the cell is felt at a node;
        [C, C]: how much of what begins at the left edge of i is felt at the right edge of j.
    """
    cell = np.frombuffer(weights).reshape(-1, len(_POINTS)).sum(axis=1)
    at = np.append(_POINTS, 0.0)  # the nodes of a cell and its left edge
    # f(at + h) = sum_k c_k h**k, with c linear in the values at the nodes of the cell
    expansion = np.stack([[at**0, at, at**2], [0 * at, at**0, 2 * at], [0 * at, 0 * at, at**0]])
    expansion = expansion.transpose(0, 2, 1) @ np.linalg.inv(np.vander(_POINTS, increasing=True))
    left = (1 - at) * (cell / memory)[:, None]  # memories until the right edge
    # int_0^left h**k exp(-h) dh = k! gammainc(k + 1, left)
    moments = [gammainc(1, left), gammainc(2, left), 2 * gammainc(3, left)]
    taken: Array = sum(
        (memory / cell)[:, None, None] ** k * moment[:, :, None] * c
        for k, (moment, c) in enumerate(zip(moments, expansion, strict=True))
    )
    right = np.cumsum(cell)
    apart = (np.append(0, right[:-1])[:, None] - right) / memory  # left edge of i from right of j
    kept = np.where(apart > -1e-12, np.exp(-np.maximum(apart, 0)), 0)
    return taken, np.exp(-left[:, :-1]), kept
