"""The formulas of power-function averages: width, exponent, decay of one update, inner product.

Equation numbers are those of arXiv 2312.02696. NumPy only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

SIGMA_REL_MAX = 12**-0.5
"""Largest relative width: that of the uniform average of the whole run (gamma = 0)."""


def sigma_rel_to_gamma(sigma_rel: ArrayLike) -> NDArray[np.float64]:
    """Exponent of the power-function profile with the given relative width.

    Inverts ``sigma_rel**2 = (gamma + 1) / ((gamma + 2)**2 * (gamma + 3))`` (Eq. 123). With
    ``u = gamma + 2`` and ``t = sigma_rel**-2`` this is ``u**3 + u**2 - t*u + t = 0``. Its largest
    root lies below ``sqrt(t)`` on a convex branch, so Newton's method descends to it from there.

    Args:
        sigma_rel: Standard deviation of the profile as a fraction of training time, any shape,
            each value in the open interval (0, 12**-0.5).

    Returns:
        gamma, float64, same shape, > 0.

    Raises:
        ValueError: If a width is outside the interval or not finite.

    Example:
        >>> np.round(sigma_rel_to_gamma([0.05, 0.10]), 3)
        array([16.972,  6.937])
    """
    width = np.asarray(sigma_rel, dtype=np.float64)
    if not np.all((width > 0) & (width < SIGMA_REL_MAX)):
        raise ValueError(
            f"sigma_rel must lie between 0 and {SIGMA_REL_MAX:.4f} (the width of a uniform average"
            f" of the whole run), got {width}; typical lengths are 0.02 to 0.25"
        )
    t = width**-2
    u: NDArray[np.float64] = np.sqrt(t)
    for _ in range(20):  # quadratic convergence; the last steps only polish rounding
        u = u - (u**3 + u**2 - t * u + t) / (3 * u**2 + 2 * u - t)
    return u - 2


def gamma_to_sigma_rel(gamma: ArrayLike) -> NDArray[np.float64]:
    """Relative width of the power-function profile with exponent ``gamma`` (Eq. 123).

    Args:
        gamma: Exponent, any shape, each value finite and >= 0.

    Returns:
        sigma_rel, float64, same shape, in (0, 12**-0.5].

    Raises:
        ValueError: If an exponent is negative or not finite.

    Example:
        >>> round(float(gamma_to_sigma_rel(6.94)), 4)
        0.1
    """
    exponent = np.asarray(gamma, dtype=np.float64)
    if not np.all((exponent >= 0) & np.isfinite(exponent)):
        raise ValueError(
            f"gamma must be finite and at least 0, got {exponent}; sigma_rel 0.10 is 6.94"
        )
    width: NDArray[np.float64] = np.sqrt((exponent + 1) / (exponent + 3)) / (exponent + 2)
    return width


def decay(gamma: ArrayLike, nimg: ArrayLike, stride: ArrayLike) -> NDArray[np.float64]:
    """beta, the weight that the average keeps in the update that ends at ``nimg`` (Eq. 127).

    ``beta = (1 - stride / nimg) ** (gamma + 1)``; the new weights enter with ``1 - beta``. The
    first update (stride = nimg) has beta = 0. This is exact for weights that stay constant over the
    stride, so the profile does not depend on the stride, skipped updates or the batch size.

    Args:
        gamma: Exponent >= 0.
        nimg: Training images seen after the update, > 0.
        stride: Images since the previous update, 0 < stride <= nimg.

    Returns:
        beta in [0, 1), float64, of the broadcast shape.

    Example:
        >>> round(float(decay(6.94, nimg=2**26, stride=2048)), 6)
        0.999758
    """
    t, step = np.asarray(nimg, np.float64), np.asarray(stride, np.float64)
    beta: NDArray[np.float64] = np.power((t - step) / t, np.asarray(gamma, np.float64) + 1)
    return beta


def decay_to_half_life(decay: float, batch_size: float) -> float:
    """Half-life in images of an EMA with constant decay: ``-batch_size / log2(decay)``.

    Args:
        decay: Weight that the average keeps per update, in (0, 1).
        batch_size: Images between two updates, > 0.

    Raises:
        ValueError: If the decay is not between 0 and 1, or the batch size is not positive.

    Example:
        >>> round(decay_to_half_life(0.9999, batch_size=1))
        6931
    """
    if not (0 < decay < 1 and batch_size > 0):
        raise ValueError(
            "a constant decay must lie between 0 and 1, and its batch size be positive,"
            f" got {decay} and {batch_size}"
        )
    return -batch_size / float(np.log2(decay))


def inner_product(
    t_a: ArrayLike, gamma_a: ArrayLike, t_b: ArrayLike, gamma_b: ArrayLike
) -> NDArray[np.float64]:
    """Integral over time of the product of two power-function profiles, per image (Eq. 151).

    For ``t_a <= t_b``: ``(gamma_a+1) (gamma_b+1) (t_a/t_b)**gamma_b / ((gamma_a+gamma_b+1) t_b)``.
    The ratio keeps it finite where powers of image counts would overflow. Arguments broadcast.

    Args:
        t_a: End of the first profile in images, > 0.
        gamma_a: Exponent of the first profile, >= 0.
        t_b: End of the second profile in images, > 0.
        gamma_b: Exponent of the second profile, >= 0.

    Example:
        >>> round(float(inner_product(1, 3, 1, 3)), 6)  # (3 + 1)**2 / (2 * 3 + 1)
        2.285714
    """
    t_a, gamma_a, t_b, gamma_b = (np.asarray(v, np.float64) for v in (t_a, gamma_a, t_b, gamma_b))
    ratio = np.minimum(t_a, t_b) / np.maximum(t_a, t_b)
    exponent = np.where(t_a < t_b, gamma_b, gamma_a)
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return scale * ratio**exponent / np.maximum(t_a, t_b)
