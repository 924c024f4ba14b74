"""How much each image moves the Fréchet distance: what intervals are made from.

This is the jackknife: with I(x) the change by leaving image x out, times N - 1, the distance at N
images has variance Var(I) / N, and two distances on the same seeds covary by Cov(I_a, I_b) / N. The
change is exact, see :class:`Removal`. To first order it is the derivative towards x,

    I(x) = 2 (m - m_r) . (x - m) + (x - m)' G (x - m) - tr(G S),
    G = 1 - R (R S R)^(-1/2) R,  R = S_r^(1/2),

with the mean m and covariance S of the features; but S has seen x itself, and with few images for
the dimensions that makes G, and the intervals, too small. Features in many dimensions make the
gradient noisy besides, which Var(I) contains twice as often as the distance does (it counts the
k-th order of the Hoeffding decomposition k times): half of the gradient's noise is taken off
again. It is measured by leaving out quarters of the images in turn; an image's own quarter does not
count, since a gradient that has not seen an image differs for another reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from edm2lite.metrics.moments import Array, Moments

GROUPS = 4


class Gradient:
    """Derivative of the Fréchet distance to a reference, at the moments of some images.

    Args:
        at: Moments of the images.
        mean: Of the reference.
        root: Square root of its covariance.
    """

    def __init__(self, at: Moments, mean: Array, root: Array):
        values, vectors = np.linalg.eigh(root @ at.cov @ root)
        # with fewer images than features S is singular; they span the rest, and only that matters
        keep = values > 1e-10 * values.max()
        self._root = root @ vectors[:, keep] * values[keep] ** -0.25
        self._slope = 2 * (at.mean - mean)

    def __call__(self, offsets: Array) -> Array:
        """[N] influences of features [N, F] less their mean, up to a constant."""
        square = (offsets**2).sum(1) - ((offsets @ self._root) ** 2).sum(1)
        return offsets @ self._slope + square


class Removal:
    """What leaving out one image does to the Fréchet distance, times 1 - count: its influence.

    Without x, of offset d = x - m among n images, the mean is m - d / (n - 1) and the covariance
    (n - 1) / (n - 2) (S - b dd') with b = n / (n - 1)**2. With A = R S R and v = sqrt(b) R d,

        tr (A - vv')^(1/2) = tr A^(1/2) + 1/(2 pi) int_0^inf log(1 - v' (A + t)^(-1) v) t^(-1/2) dt,

    from the same integral of log det(1 + M / t) being that root's trace of any M. As a function of
    ln t the integrand is analytic up to pi from the real axis and falls off as exp(-|ln t| / 2):
    the trapezoidal rule of step 1, from e^-40 below to e^40 above all eigenvalues, errs by 1e-8.

    Args:
        at: Moments of the images, at least 3.
        mean: Of the reference.
        root: Square root of its covariance.

    Raises:
        ValueError: Fewer than 3 images.
    """

    def __init__(self, at: Moments, mean: Array, root: Array):
        if at.count < 3:
            raise ValueError(f"an interval needs at least 3 images, got {at.count}")
        values, vectors = np.linalg.eigh(root @ at.cov @ root)
        keep = values > 1e-10 * values.max()
        values = values[keep]
        self._count = at.count
        self._axes = root @ vectors[:, keep] * np.sqrt(at.count) / (at.count - 1)
        logs = np.arange(np.log(values[0]) - 40, np.log(values[-1]) + 40)
        self._resolvent = 1 / (values[:, None] + np.exp(logs))
        self._steps = np.exp(logs / 2) / (2 * np.pi)
        self._slope = 2 * (at.mean - mean)

    def __call__(self, offsets: Array) -> Array:
        """[N] influences of features [N, F] less their mean, up to a constant."""
        n = self._count
        seen = (offsets @ self._axes) ** 2 @ self._resolvent
        lost = np.log1p(-np.minimum(seen, 1 - 1e-15)) @ self._steps  # of the trace of the root
        size = (offsets**2).sum(1)
        scale = (n - 1) / (n - 2)
        change = size / (n - 1) ** 2 - offsets @ self._slope / (n - 1)
        change += -scale * n / (n - 1) ** 2 * size - 2 * np.sqrt(scale) * lost
        return (1 - n) * change


def square_root(cov: Array) -> Array:
    """The symmetric square root of a covariance."""
    values, vectors = np.linalg.eigh(cov)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def moments_of(parts: Callable[[], Iterator[Array]], num: int) -> tuple[Moments, list[Moments]]:
    """Moments of all rows, and of each quarter of them; one pass.

    Quarters are consecutive images: classes that come in turn are in each alike.
    """
    quarters, begin = [Moments() for _ in range(GROUPS)], 0
    edges = np.linspace(0, num, GROUPS + 1).astype(int)
    for rows in parts():
        for quarter, low, high in zip(quarters, edges, edges[1:], strict=False):
            inside = rows[max(0, low - begin) : max(0, high - begin)]
            if len(inside):
                quarter.add(inside)
        begin += len(rows)
    total = Moments()
    for quarter in quarters:
        total.merge(quarter)
    return total, quarters


def influences(
    parts: Callable[[], Iterator[Array]],
    moments: tuple[Moments, list[Moments]],
    mean: Array,
    root: Array,
    classes: int = 0,
) -> NDArray[np.float64]:
    """[1 + GROUPS, num]: influences at all moments, then how they vary without each quarter.

    Args:
        parts: Goes over the features [n, F].
        moments: Of them, from :func:`moments_of`.
        mean, root: Of the reference, see :class:`Gradient`.
        classes: Number of classes if they come in turn. Other seeds have the same share of each
            then, so that only what differs within a class counts; it needs 4 images of each.
    """
    total, quarters = moments
    gradients: list[Callable[[Array], Array]] = [Removal(total, mean, root)]
    gradients += [Gradient(total.without(quarter), mean, root) for quarter in quarters]
    center = total.mean
    rows = [np.stack([g(part - center) for g in gradients]) for part in parts()]
    values = np.concatenate(rows, axis=1)
    strata = classes if values.shape[1] >= 4 * classes > 4 else 1
    for stratum in range(strata):
        part = values[:, stratum::strata]
        part -= part.mean(axis=1, keepdims=True)
        part *= np.sqrt(part.shape[1] / (part.shape[1] - 1))
    own = np.repeat(np.arange(GROUPS), [quarter.count for quarter in quarters])
    kept = own != np.arange(GROUPS)[:, None]
    mean_kept = (values[1:] * kept).sum(axis=0) / (GROUPS - 1)
    values[1:] = (values[1:] - mean_kept) * kept
    return values


def covariance(spreads: list[NDArray[np.float64]]) -> Array:
    """[L, L] covariance of the metric of L cells that were measured on the same images.

    Args:
        spreads: [J, num] each; rows after the first are the noise that is taken off by half.
    """
    num = spreads[0].shape[1]
    first = np.stack([spread[0] for spread in spreads])
    plain = first @ first.T / num
    if len(spreads[0]) > 1:
        noise = np.einsum("ajn,bjn->ab", *2 * [np.stack([spread[1:] for spread in spreads])]) / num
        # of the jackknife: without an image's own quarter there are GROUPS - 1 of them
        noise *= (GROUPS - 1) ** 2 / (GROUPS * (GROUPS - 2))
        # half of it is the least there can be: it is so when all of it is the gradient's noise
        values, vectors = np.linalg.eigh(plain / 2 - noise / 2)
        plain = plain / 2 + (vectors * np.maximum(values, 0)) @ vectors.T
    return plain / num
