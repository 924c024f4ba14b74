"""Integrals over a training run, and the smoothing of integrands by a memory.

NumPy and SciPy only.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammainc

Array = NDArray[np.float64]

_POINTS, _POINT_WEIGHTS = (
    0.5 * (v + o) for v, o in zip(np.polynomial.legendre.leggauss(3), (1, 0), strict=True)
)


def quadrature_nodes(times: ArrayLike, end: float, kinks: ArrayLike = ()) -> tuple[Array, Array]:
    """Nodes and weights of a quadrature over (0, end): Gauss-Legendre with 3 points per cell.

    Profiles are smooth between the ends of averages, so every end is a boundary of a cell. Further
    boundaries keep cells short compared with the time so far, and near the end of the run, where
    short averages have their weight.

    Args:
        times: Ends of averages in images, > 0.
        end: End of the run in images.
        kinks: Other times in images at which an average is not smooth.

    Returns:
        Times [M] in (0, end) and weights [M], both in images. M is a multiple of 3.

    Example:
        >>> times, weights = quadrature_nodes([500, 1000], end=1000)
        >>> round(float(times**2 @ weights), 2)  # the integral of t**2: 1000**3 / 3
        333333333.33
    """
    times = np.unique(np.append(np.asarray(times, np.float64), end))
    first = times[0]
    breaks = np.concatenate(
        [
            [0.0],
            first * np.geomspace(1 / 16, 1, 9),
            times,
            np.asarray(kinks, np.float64),
            np.geomspace(first, end, 160),
            end - end * np.geomspace(1e-3, 0.1, 12),
        ]
    )
    breaks = np.unique(np.clip(breaks, 0, end))
    breaks = breaks[np.append(True, np.diff(breaks) > 1e-9 * end)]
    cell = np.diff(breaks)[:, None]
    return (breaks[:-1, None] + cell * _POINTS).ravel(), (cell * _POINT_WEIGHTS).ravel()


def lookahead_mean(values: Array, weights: Array, memory: float) -> Array:
    """Exponentially weighted mean over later times, ``g(t) = int_0^inf f(t + a) exp(-a/m) da/m``.

    If f is the weight of an average, noise that arises at t and decays with this memory enters the
    average with the weight g(t). f is 0 after the last cell. Exact where f is quadratic in each
    cell.

    Args:
        values: [K, M] values of f at the nodes of :func:`quadrature_nodes`.
        weights: [M] weights of the nodes, in images.
        memory: m > 0 in images.

    Returns:
        [K, M] values of g at the nodes.

    Example:
        >>> times, weights = quadrature_nodes([1.0], end=1.0)
        >>> g = lookahead_mean(np.ones((1, len(times))), weights, memory=0.5)
        >>> bool(np.allclose(g, 1 - np.exp((times - 1) / 0.5)))  # f is 1 up to t = 1
        True
    """
    within, felt, kept = _memory(weights.tobytes(), memory)
    inside: Array = np.einsum("kcj,cpj->kcp", values.reshape(len(values), -1, len(_POINTS)), within)
    later = (inside[:, :, -1] @ kept)[:, :, None] * felt
    return (inside[:, :, :-1] + later).reshape(values.shape)


@functools.lru_cache(maxsize=16)
def _memory(weights: bytes, memory: float) -> tuple[Array, Array, Array]:
    """The parts of :func:`lookahead_mean` that do not depend on f, cached: a fit has few memories.

    Returns:
        [C, 4, 3]: contribution of f at the 3 nodes of a cell to the mean at each node, and at the
        left edge, up to the right edge of the cell.
        [C, 3]: factor at each node on the contribution of all later cells.
        [C, C]: factor on the contribution of cell i, from its left edge, at the right edge of j.
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
