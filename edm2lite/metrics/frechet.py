"""Fréchet distances (FID, FD-DINOv2), and how they depend on each image.

``|m_a - m_b|**2 + tr(S_a + S_b - 2 (S_a S_b)**(1/2))`` between mean and covariance of the features
of two sets of images.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edm2lite.metrics.feature_stats import FeatureStats, check_same_features
from edm2lite.metrics.features import FeatureMetric
from edm2lite.metrics.influence import centered
from edm2lite.metrics.inputs import MetricInputs, Reference
from edm2lite.metrics.measurement import ImageRows, Measurement
from edm2lite.metrics.metric import Metric
from edm2lite.metrics.moments import Array, RunningMoments

logger = logging.getLogger(__name__)

INCEPTION = "inception-v3-compat"
"""The extractor of FID."""


def frechet_distance(a: FeatureStats, b: FeatureStats) -> float:
    """The Fréchet distance of two sets of images, by torch-fidelity.

    Raises:
        ValueError: If the statistics come from different extractors.

    Example:
        >>> def stats(mean):
        ...     return FeatureStats(9, np.array(mean), np.eye(2), "x", "", "", "made up")
        >>> frechet_distance(stats([0.0, 0.0]), stats([3.0, 4.0]))
        25.0
    """
    check_same_features(a, b)
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    for stats in (a, b):
        if 0 < stats.count <= len(stats.mean):
            logger.warning(
                "%s: %d images for %d features; the distance is biased far upwards, compare it only"
                " with distances of as many images",
                stats.source, stats.count, len(stats.mean),
            )  # fmt: skip
    pair = ({"mu": s.mean, "sigma": s.cov} for s in (a, b))
    return float(fid_statistics_to_metric(*pair, verbose=False)[KEY_METRIC_FID])


class FrechetDistance(FeatureMetric):
    """The Fréchet distance in the features of the reference, whichever these are.

    Example:
        >>> from edm2lite.metrics.extractors import Extractor
        >>> reference = FeatureStats(9, np.zeros(2), np.eye(2), "x", "", "", "made up")
        >>> metric = FrechetDistance(reference, Extractor("x", None, None, ""))
        >>> metric.title
        'fd(x)'
        >>> rows = np.random.default_rng(0).standard_normal((500, 2))
        >>> measured = metric.measure(ImageRows.of(rows))
        >>> measured.value < 0.1, measured.influences.shape
        (True, (5, 500))
    """

    name: ClassVar[str] = "fd"
    label: ClassVar[str] = "FD"
    axis_label: ClassVar[str] = "Fréchet distance"
    record_name: ClassVar[str] = "fd"
    _is_dinov2: ClassVar[bool] = False

    @classmethod
    def choose(cls, references: Sequence[Reference]) -> list[Reference]:
        """The references of the extractor that the distance is defined for.

        Raises:
            ValueError: If there are references, but none of them fits.
        """
        chosen = [r for r in references if r.is_dinov2 == cls._is_dinov2]
        if references and not chosen:
            other, kind = ("fid", "dinov2-vit-l-14")
            if not cls._is_dinov2:
                other, kind = ("fd_dinov2", INCEPTION)
            other += "_infinity" * cls.name.endswith("_infinity")
            raise ValueError(
                f"{cls.name} needs a reference made with --extractor {kind} or the like, got"
                f" {references[0].stats.extractor}; {other} is the distance in such features"
            )
        return chosen

    @classmethod
    def create(cls, inputs: MetricInputs) -> list[Metric]:
        """See :meth:`edm2lite.metrics.Metric.create`; a distance is named by its features."""
        made = (metric for metric in super().create(inputs) if isinstance(metric, FrechetDistance))
        return [cls.of_features(m.reference.extractor)(m.reference, m.extractor) for m in made]

    @classmethod
    def of_features(cls, extractor: str) -> type[FrechetDistance]:
        """The class of this distance in the features of an extractor."""
        return cls

    @property
    def title(self) -> str:
        """Its name with that of the extractor."""
        return f"{self.name}({self.reference.extractor})"

    @property
    def minimum_images(self) -> int:
        """Twice as many images as features: with fewer, most of the distance is bias."""
        return 2 * len(self.reference.mean)

    def measure(self, rows: ImageRows) -> Measurement:
        """See :meth:`edm2lite.metrics.Metric.measure`."""
        stats = FeatureStats.of(rows.moments[0], self.extractor, rows.source)
        check_same_features(stats, self.reference)
        influences = frechet_influences(rows, self.reference.mean, self._root)
        return Measurement(frechet_distance(stats, self.reference), influences)

    @functools.cached_property
    def _root(self) -> Array:
        return square_root(self.reference.cov)


class FID(FrechetDistance):
    """The Fréchet distance in the features of Inception (arXiv 1706.08500).

    For a reference with other features it makes a :class:`FrechetDistance`, not called FID.

    Example:
        >>> FID.of_features("inception-v3-compat").label, FID.of_features("digits").label
        ('FID', 'FD')
    """

    name: ClassVar[str] = "fid"
    label: ClassVar[str] = "FID"
    record_name: ClassVar[str] = "fd"  # what ledgers call it, with the extractor beside it

    @classmethod
    def of_features(cls, extractor: str) -> type[FrechetDistance]:
        """See :meth:`FrechetDistance.of_features`."""
        return cls if extractor == INCEPTION else FrechetDistance

    @property
    def title(self) -> str:
        """Its name, which says the extractor."""
        return self.name


class FDDinov2(FrechetDistance):
    """The Fréchet distance in the features of DINOv2 (arXiv 2306.04675)."""

    name: ClassVar[str] = "fd_dinov2"
    label: ClassVar[str] = "FD-DINOv2"
    axis_label: ClassVar[str] = "Fréchet distance, DINOv2"
    record_name: ClassVar[str] = "fd"  # of another extractor, which the ledger keeps too
    _is_dinov2: ClassVar[bool] = True

    @property
    def title(self) -> str:
        """Its name, which says the extractor."""
        return self.name


class Gradient:
    """Derivative of the Fréchet distance to a reference, at the moments of some images.

    Towards an image x it is, with the mean m and covariance S of the features of the images,

        I(x) = 2 (m - m_r) . (x - m) + (x - m)' G (x - m) - tr(G S),
        G = 1 - R (R S R)^(-1/2) R,  R = S_r^(1/2).

    Args:
        at: Moments of the images.
        mean: Mean m_r of the reference, [F].
        root: Square root R of the covariance of the reference, [F, F].
    """

    def __init__(self, at: RunningMoments, mean: Array, root: Array):
        values, vectors = np.linalg.eigh(root @ at.cov @ root)
        # with fewer images than features S is singular; they span the rest, and only that matters
        keep = values > 1e-10 * values.max()
        self._root = root @ vectors[:, keep] * values[keep] ** -0.25
        self._slope = 2 * (at.mean - mean)

    def __call__(self, offsets: Array) -> Array:
        """[N] influences of features [N, F] less their mean, up to a constant."""
        square = (offsets**2).sum(1) - ((offsets @ self._root) ** 2).sum(1)
        influences: Array = offsets @ self._slope + square
        return influences


class Removal:
    """What leaving out one image does to the Fréchet distance, times 1 - count: its influence.

    It is exact. To first order it is the :class:`Gradient`; but S has seen the image itself, and
    with few images for the number of features that makes G, and the intervals, too small. Without
    x, of offset d = x - m among n images, the mean is m - d / (n - 1) and the covariance
    (n - 1) / (n - 2) (S - b dd') with b = n / (n - 1)**2. With A = R S R and v = sqrt(b) R d,

        tr (A - vv')^(1/2) = tr A^(1/2) + 1/(2 pi) int_0^inf log(1 - v' (A + t)^(-1) v) t^(-1/2) dt,

    from the same integral of log det(1 + M / t) being that root's trace of any M. As a function of
    ln t the integrand is analytic up to pi from the real axis and falls off as exp(-|ln t| / 2):
    the trapezoidal rule of step 1, from e^-40 below to e^40 above all eigenvalues, errs by 1e-8.

    Args:
        at: Moments of the images, at least 3.
        mean: Mean of the reference, [F].
        root: Square root R of the covariance of the reference, [F, F].

    Raises:
        ValueError: If there are fewer than 3 images.
    """

    def __init__(self, at: RunningMoments, mean: Array, root: Array):
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
        influences: Array = (1 - n) * change
        return influences


def distance_of(at: RunningMoments, mean: Array, root: Array) -> float:
    """The Fréchet distance of images with these moments to a reference.

    Args:
        at: Moments of the images.
        mean: Mean of the reference, [F].
        root: Square root of the covariance of the reference, [F, F].

    Example:
        >>> moments = RunningMoments()
        >>> moments.add(np.array([[3.0, 5.0], [3.0, 3.0]]))
        >>> round(distance_of(moments, np.zeros(2), np.eye(2)), 4)  # 25 + 1 + (2**0.5 - 1)**2
        26.1716
    """
    cov = at.cov
    values = np.linalg.eigvalsh(root @ cov @ root)
    roots = np.sqrt(np.maximum(values, 0)).sum()
    offset = at.mean - mean
    return float(offset @ offset + np.trace(cov) + (root**2).sum() - 2 * roots)


def square_root(cov: Array) -> Array:
    """The symmetric square root of a covariance.

    Example:
        >>> square_root(np.diag([4.0, 9.0])).round(6)
        array([[2., 0.],
               [0., 3.]])
    """
    values, vectors = np.linalg.eigh(cov)
    root: Array = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return root


def frechet_influences(rows: ImageRows, mean: Array, root: Array) -> NDArray[np.float64]:
    """[1 + GROUPS, N] influences of the images on their Fréchet distance to a reference.

    The first row is :class:`Removal` at all images, the others are :class:`Gradient` without each
    quarter of them, see :func:`edm2lite.metrics.influence.centered`.

    Args:
        rows: Features of the images.
        mean: Mean of the reference, [F].
        root: Square root of the covariance of the reference, [F, F].
    """
    total, quarters = rows.moments
    changes: list[Callable[[Array], Array]] = [Removal(total, mean, root)]
    changes += [Gradient(total.without(quarter), mean, root) for quarter in quarters]
    center = total.mean
    parts = [np.stack([change(part - center) for change in changes]) for part in rows.parts()]
    return centered(np.concatenate(parts, axis=1), rows.num_classes)
