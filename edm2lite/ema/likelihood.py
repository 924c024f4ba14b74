"""Variance components by maximum likelihood, and whether they describe what was measured. NumPy.

The components are kernels [3 J + 1, k, k] of the covariance of k differences: three families of
J pieces of the run (walk, white noise, excursions) and the drift.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_PRIOR = 0.01  # weight of a rate's neighbours in time, in contrasts; decides where data are silent
_SHAPE = 1.25  # root mean square of whitened covariances up to which the model is trusted
_TRUSTED = 0.9, 1.1  # a held-out average may be missed by so much of what was predicted


def equal_shares(kernels: Array, smooth: bool) -> Array:
    """Rates with which every family explains as much; white noise is not smooth."""
    traces, rates = np.trace(kernels, axis1=1, axis2=2), np.zeros(len(kernels))
    families = [f for i, f in enumerate(_families(len(kernels))) if not (smooth and i == 1)]
    for family in families:
        total = traces[family].sum()
        rates[family] = kernels.shape[1] / (len(families) + 2) / total if total > 0 else 0
    return rates


def fit_rates(kernels: Array, noise: Array, measured: Array, rates: Array, steps: int) -> Array:
    """Rates of all kernels; the noise has its own strength.

    Args:
        kernels: [..., J, k, k], each set of kernels a model of its own.
        noise, measured: [k, k].
        rates: [..., J] to start from.
        steps: Number of updates.
    """
    shape = kernels.shape[-2:]
    flat = kernels.reshape(*rates.shape, -1)  # [..., J, k * k]
    before, after = _neighbours(rates.shape[-1])
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


def unlikelihood(covariance: Array, measured: Array) -> float:
    """``log det C + trace C**-1 S``, minus 2 / n of the log likelihood of n samples."""
    regular = covariance + 1e-12 * np.eye(len(covariance))
    return float(np.linalg.slogdet(regular)[1] + np.sum(_inverse(covariance) * measured))


def misfit_of(basis: Array, covariance: Array, measured: Array) -> float:
    """Factor by which predictions must grow; 1 where the model describes the averages.

    Two signs of a wrong model count. Over all differences of the averages the whitened covariance
    has mean square 1 if the model is true, and up to 1.5 on networks that it describes. And each
    average is left out and predicted from the others with the least error that the model knows: the
    residual is ``(Q averages)_i / Q_ii`` of expected square ``1 / Q_ii`` with the inverse
    covariance Q. Errors that are not of the size expected, in either direction, betray a model
    under which other errors will not be either.
    """
    inverse = _inverse(covariance)
    explained = inverse @ measured
    mean_square = float(np.sum(explained * explained.T)) / len(measured)
    residual = np.sum(basis * (explained @ inverse @ basis), axis=0)
    expected = np.sum(basis * (inverse @ basis), axis=0)
    held_out = float(np.sqrt(np.mean(residual / np.maximum(expected, 1e-300))))
    low, high = _TRUSTED
    surprise = max(1.0, held_out / high, low / max(held_out, 1e-3))
    return max(1.0, np.sqrt(mean_square) / _SHAPE) * surprise


def _families(count: int) -> list[slice]:
    """Where the walk, the white part, the excursions and the drift are among the rates."""
    pieces = (count - 1) // 3
    return [slice(i * pieces, (i + 1) * pieces) for i in range(3)] + [slice(3 * pieces, count)]


def _inverse(covariance: Array) -> Array:
    lower = np.linalg.cholesky(covariance + 1e-12 * np.eye(covariance.shape[-1]))
    half = np.linalg.inv(lower)
    return half.swapaxes(-1, -2) @ half


def _neighbours(count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of the rates before and after each in its family; at an end, of the one there is."""
    before, after = [], []
    for family in _families(count):
        inner = np.arange(family.start, family.stop)
        near = np.pad(inner, 1, mode="reflect" if len(inner) > 1 else "edge")
        before.append(near[:-2])
        after.append(near[2:])
    return np.concatenate(before), np.concatenate(after)
