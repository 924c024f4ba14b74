"""Variance components by maximum likelihood, and a check of how well they describe the data.

The components are kernels [3 J + 1, k, k] of the covariance of k differences: three families (walk,
white noise, excursions) with one kernel for each of J pieces of the run, and the drift. NumPy only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_PRIOR = 0.01  # weight of a rate's neighbors in time, in contrasts; decides where data are silent
_SHAPE = 1.25  # root mean square of whitened covariances up to which the model is trusted
_TRUSTED = 0.9, 1.1  # accepted error of held-out averages, relative to the predicted error


def balanced_rates(kernels: Array, smooth: bool) -> Array:
    """Rates with which every family contributes equally to the trace of the covariance.

    Args:
        kernels: [3 J + 1, k, k] covariances at unit rates.
        smooth: Whether movements are smooth; white noise then has the rate 0.

    Returns:
        [3 J + 1] rates, a starting point for :func:`fit_rates`.

    Example:
        >>> balanced_rates(np.stack([np.eye(2)] * 4), smooth=False)
        array([0.16666667, 0.16666667, 0.16666667, 0.16666667])
    """
    traces, rates = np.trace(kernels, axis1=1, axis2=2), np.zeros(len(kernels))
    families = [f for i, f in enumerate(_families(len(kernels))) if not (smooth and i == 1)]
    for family in families:
        total = traces[family].sum()
        rates[family] = kernels.shape[1] / (len(families) + 2) / total if total > 0 else 0
    return rates


def fit_rates(kernels: Array, noise: Array, measured: Array, rates: Array, steps: int) -> Array:
    """Rates of kernels under which the measured covariance is the most likely.

    Each update multiplies every rate by ``sqrt(trace(K C**-1 S C**-1) / trace(K C**-1))``, with the
    kernel K, the model covariance C and the measured covariance S. It raises the likelihood and
    keeps rates non-negative. A weak prior ties each rate to its neighbors in time.

    Args:
        kernels: [..., J, k, k] covariances at unit rates; each set of J is a model of its own.
        noise: [k, k] covariance that is added with fixed strength.
        measured: [k, k] covariance S of the data.
        rates: [..., J] rates to start from.
        steps: Number of updates.

    Returns:
        [..., J] rates >= 0.

    Example:
        >>> kernels = np.stack([np.eye(3)] * 4)
        >>> rates = fit_rates(kernels, np.zeros((3, 3)), 4 * np.eye(3), np.full(4, 0.1), steps=50)
        >>> round(float(rates.sum()), 2)
        4.0
    """
    shape = kernels.shape[-2:]
    flat = kernels.reshape(*rates.shape, -1)  # [..., J, k * k]
    before, after = _neighbors(rates.shape[-1])
    for _ in range(steps):
        moved = (rates[..., None, :] @ flat).reshape(*rates.shape[:-1], *shape)
        inverse = _inverse(moved + noise)
        seen = inverse @ measured @ inverse
        gain = (flat @ seen.reshape(*rates.shape[:-1], -1, 1))[..., 0]
        cost = (flat @ inverse.reshape(*rates.shape[:-1], -1, 1))[..., 0]
        roots = np.sqrt(rates)
        around = roots[..., before] * roots[..., after]
        ratio = np.divide(around, rates, out=np.zeros_like(rates), where=rates > 0)
        rates = rates * np.sqrt(
            (np.maximum(gain, 0) * rates + _PRIOR * ratio) / (np.maximum(cost, 0) * rates + _PRIOR)
        )
    return rates


def deviance(covariance: Array, measured: Array) -> float:
    """``log det C + trace C**-1 S``, -2 / n times the log likelihood of n samples plus a constant.

    Args:
        covariance: C [k, k], of the model.
        measured: S [k, k], of the samples.

    Example:
        >>> deviance(np.eye(2), np.eye(2)) < deviance(2 * np.eye(2), np.eye(2))
        True
    """
    regular = covariance + 1e-12 * np.eye(len(covariance))
    return float(np.linalg.slogdet(regular)[1] + np.sum(_inverse(covariance) * measured))


def misfit_of(basis: Array, covariance: Array, measured: Array) -> float:
    """Factor >= 1 by which predicted errors must grow; 1 if the model describes the averages.

    Two signs of a wrong model count. First, the whitened covariance of the differences has mean
    square 1 if the model is true, and up to 1.5 on networks that it describes well. Second, each
    average is left out and predicted from the others with the smallest error possible under the
    model: with the inverse covariance Q, the residual is ``(Q averages)_i / Q_ii``, of expected
    square ``1 / Q_ii``. If these errors are not of the expected size, in either direction, other
    predictions of the model will be wrong too.

    Args:
        basis: [k, K] differences as combinations of the K averages; rows sum to 0.
        covariance: [k, k] of the differences under the model.
        measured: [k, k] of the differences in the data.

    Example:
        >>> basis = np.array([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]])
        >>> misfit_of(basis, np.eye(2), np.eye(2))
        1.0
        >>> round(misfit_of(basis, np.eye(2), 4 * np.eye(2)), 2)
        5.82
    """
    inverse = _inverse(covariance)
    explained = inverse @ measured
    mean_square = float(np.sum(explained * explained.T)) / len(measured)
    residual = np.sum(basis * (explained @ inverse @ basis), axis=0)
    expected = np.sum(basis * (inverse @ basis), axis=0)
    held_out = float(np.sqrt(np.mean(residual / np.maximum(expected, 1e-300))))
    low, high = _TRUSTED
    surprise = max(1.0, held_out / high, low / max(held_out, 1e-3))
    return max(1.0, float(np.sqrt(mean_square)) / _SHAPE) * surprise


def _families(count: int) -> list[slice]:
    """Positions of the walk, the white noise, the excursions and the drift among the rates."""
    pieces = (count - 1) // 3
    return [slice(i * pieces, (i + 1) * pieces) for i in range(3)] + [slice(3 * pieces, count)]


def _inverse(covariance: Array) -> Array:
    lower = np.linalg.cholesky(covariance + 1e-12 * np.eye(covariance.shape[-1]))
    half: Array = np.linalg.inv(lower)
    inverse: Array = half.swapaxes(-1, -2) @ half
    return inverse


def _neighbors(count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of the rates before and after each rate in its family.

    At an end of a family, both are the only neighbor.
    """
    before, after = [], []
    for family in _families(count):
        inner = np.arange(family.start, family.stop)
        near = np.pad(inner, 1, mode="reflect" if len(inner) > 1 else "edge")
        before.append(near[:-2])
        after.append(near[2:])
    return np.concatenate(before), np.concatenate(after)
