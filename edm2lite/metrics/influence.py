"""How much each image moves a metric, and the variance that follows from it.

This is the jackknife: with I(x) the change of the metric by leaving image x out, times 1 - N, its
value at N images has variance Var(I) / N, and two values on the same seeds covary by
Cov(I_a, I_b) / N.

A metric that is a mean over images has ``I(x) = value of x - mean``, exactly. In others, what an
image does depends on the other images, which adds noise to I; and Var(I) contains that noise twice
as often as the metric does (the k-th order of the Hoeffding decomposition counts k times): half of
it is taken off again. It is measured by leaving out quarters of the images in turn. An image's own
quarter does not count, since an influence that has not seen the image differs for another reason.
So the influences of a metric are an array [J, N]: the first row is I, and any further
:data:`GROUPS` rows say how I varies without each quarter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edm2lite.metrics.moments import Array, RunningMoments
from edm2lite.metrics.tails import Tails

GROUPS = 4
"""Number of groups that are left out in turn: quarters."""


def quarter_edges(num: int) -> NDArray[np.int64]:
    """[GROUPS + 1] where quarters of ``num`` images begin and end.

    Quarters are consecutive images: classes that come in turn are in each alike.
    """
    return np.linspace(0, num, GROUPS + 1).astype(np.int64)


def moments_of(
    parts: Callable[[], Iterator[Array]], num: int
) -> tuple[RunningMoments, list[RunningMoments]]:
    """Moments of all rows, and of each quarter of them; one pass.

    Args:
        parts: Function that goes over the rows, [n, D] at a time.
        num: Number of rows.

    Example:
        >>> total, quarters = moments_of(lambda: iter([np.arange(8.0)[:, None]]), num=8)
        >>> total.mean, [float(quarter.mean[0]) for quarter in quarters]
        (array([3.5]), [0.5, 2.5, 4.5, 6.5])
    """
    quarters, begin = [RunningMoments() for _ in range(GROUPS)], 0
    edges = quarter_edges(num)
    for rows in parts():
        for quarter, low, high in zip(quarters, edges, edges[1:], strict=False):
            inside = rows[max(0, low - begin) : max(0, high - begin)]
            if len(inside):
                quarter.add(inside)
        begin += len(rows)
    total = RunningMoments()
    for quarter in quarters:
        total.merge(quarter)
    return total, quarters


def centered(values: Array, num_classes: int = 0, weights: Array | None = None) -> Array:
    """Influences from what each image adds up to a constant; the mean of each row becomes 0.

    Args:
        values: [1, N], or [1 + GROUPS, N] with what is added without each quarter; overwritten.
        num_classes: Number of classes if they come in turn, else 0. Other seeds then have the same
            share of each class, so that only what differs within a class counts; it needs 4 images
            of each class.
        weights: [N], how often each image counts in the metric, of mean 1. [default: once each]

    Returns:
        [1, N] or [1 + GROUPS, N].

    Example:
        >>> centered(np.array([[1.0, 2.0, 6.0]])).round(3)
        array([[-2.449, -1.225,  3.674]])
    """
    num = values.shape[1]
    strata = num_classes if num >= 4 * num_classes > 4 else 1
    for stratum in range(strata):
        part = values[:, stratum::strata]
        if weights is None:
            part -= part.mean(axis=1, keepdims=True)
        else:
            share = weights[stratum::strata]
            part -= (part @ share / share.sum())[:, None]
            part *= share
        part *= np.sqrt(part.shape[1] / (part.shape[1] - 1))
    if len(values) > 1:
        own = np.repeat(np.arange(GROUPS), np.diff(quarter_edges(num)))
        kept = own != np.arange(GROUPS)[:, None]
        mean_kept = (values[1:] * kept).sum(axis=0) / (GROUPS - 1)
        values[1:] = (values[1:] - mean_kept) * kept
    return values


def covariance(influences: Sequence[Array]) -> Array:
    """[L, L] covariance of the values of a metric in L measurements on the same seeds.

    Args:
        influences: [J, N] of each measurement, see :mod:`edm2lite.metrics.influence`.

    Example:
        >>> covariance([np.array([[-1.0, 0.0, 1.0]])]).round(3)
        array([[0.222]])
    """
    num = influences[0].shape[1]
    first = np.stack([rows[0] for rows in influences])
    plain = first @ first.T / num
    if len(influences[0]) > 1:
        others = np.stack([rows[1:] for rows in influences])
        noise = np.einsum("ajn,bjn->ab", others, others) / num
        # of the jackknife: without an image's own quarter there are GROUPS - 1 of them
        noise *= (GROUPS - 1) ** 2 / (GROUPS * (GROUPS - 2))
        # half of it is the least there can be: it is so when all of it is noise of the influences
        values, vectors = np.linalg.eigh(plain / 2 - noise / 2)
        plain = plain / 2 + (vectors * np.maximum(values, 0)) @ vectors.T
    joint: Array = plain / num
    return joint


def cautious_covariance(influences: Sequence[Array]) -> Array:
    """:func:`covariance` that allows for how well it is known, see :class:`Tails`.

    Where tails are heavy, less of the noise is taken off, and what is left is widened.

    Args:
        influences: [J, N] of each measurement.

    Example:
        >>> few = [np.array([[-1.0, 0.0, 1.0]])]
        >>> float(cautious_covariance(few)[0, 0].round(3))
        0.338
    """
    tails = [Tails.of(rows) for rows in influences]
    kept = [
        np.concatenate([rows[:1], rows[1:] * tail.certainty**0.5])
        for rows, tail in zip(influences, tails, strict=True)
    ]
    factors = np.array([tail.widening for tail in tails])
    joint: Array = covariance(kept) * factors[:, None] * factors
    return joint


def block_influences(without: Array, num: int) -> Array:
    """Influences [1, num] of a metric whose value is known without each of some blocks of images.

    With D_g the value without block g of G, the variance of the jackknife over blocks is
    ``(G - 1) / G`` times the sum of ``(D_g - mean D)**2``. Every image of block g is given an
    influence of ``sqrt((G - 1) num) (mean D - D_g)``, if blocks are of one size: variances and
    covariances of such influences are those of the blocks.

    Args:
        without: [G] values without each block; blocks are consecutive images, as many in each as
            :func:`numpy.array_split` gives.
        num: Number of images.

    Example:
        >>> influences = block_influences(np.array([1.0, 2.0, 3.0]), num=6)
        >>> covariance([influences]).round(3)  # 2 / 3 of 1 + 0 + 1
        array([[1.333]])
    """
    num_blocks = len(without)
    sizes = np.array([len(block) for block in np.array_split(np.arange(num), num_blocks)])
    scale = num * np.sqrt((num_blocks - 1) / (num_blocks * sizes))
    influences: Array = np.repeat(scale * (without.mean() - without), sizes)[None]
    return influences
