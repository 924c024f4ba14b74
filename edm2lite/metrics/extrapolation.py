"""Fréchet distances extrapolated to infinitely many images: FID-infinity, with its interval.

The distance of n images from a reference is biased: its expectation is a + b / n + c / n**2 + ...,
and a, the distance of the distributions, is what one wants. Two, three and all four quarters of the
images have the distances of n / 2, 3 n / 4 and n images; averaged over all 6, 4 and 1 unions of
quarters, the parabola in 1 / n through them (by least squares through all 11) is at 1 / n = 0

    a = 8 FD(n) - 9 FD(3 n / 4) + 2 FD(n / 2).

All lengths of a sweep have the same seeds in the same quarters, and each quarter has the same share
of every class. (arXiv 1911.07023 draws a straight line through the distances of random subsets;
what is left of the bias is then several deviations at a few images per feature, see
``benchmarks/intervals.py``.)

The interval: as the line of 1 / n does, the combination cancels every pair of images of one quarter
exactly; pairs of two quarters weigh 4/3. So what images do by pairs has 4/3 of the variance that it
has in the distance itself, what they do alone has the same, and the influences are those of the
distance with 2/3 of the noise taken off; less where tails are heavy. They need no widening: what a
few images do to a distance is mostly bias.
"""

from __future__ import annotations

import itertools
import logging
from typing import ClassVar

import numpy as np

from edm2lite.metrics.feature_stats import FeatureStats, check_same_features
from edm2lite.metrics.frechet import (
    INCEPTION,
    FrechetDistance,
    distance_of,
    frechet_influences,
)
from edm2lite.metrics.influence import GROUPS
from edm2lite.metrics.measurement import ImageRows, Measurement
from edm2lite.metrics.moments import Array, RunningMoments
from edm2lite.metrics.tails import Tails

logger = logging.getLogger(__name__)

WEIGHTS = {4: 8.0, 3: -9.0, 2: 2.0}
"""Weight of the mean distance of so many quarters: a parabola in 1 / n, taken at 0."""

_ENOUGH = 2.5


class FrechetInfinity(FrechetDistance):
    """The Fréchet distance extrapolated to infinitely many images, in any features.

    ``details`` have the distance at the number of images as ``fd``.

    Example:
        >>> from edm2lite.metrics.extractors import Extractor
        >>> reference = FeatureStats(9, np.zeros(2), np.eye(2), "x", "", "", "made up")
        >>> metric = FrechetInfinity(reference, Extractor("x", None, None, ""))
        >>> rows = np.random.default_rng(0).standard_normal((500, 2))
        >>> measured = metric.measure(ImageRows.of(rows))
        >>> abs(measured.value) < 0.01, measured.details["fd"] > 0, measured.influences.shape
        (True, True, (5, 500))
    """

    name: ClassVar[str] = "fd_infinity"
    label: ClassVar[str] = "FD-infinity"
    axis_label: ClassVar[str] = "Fréchet distance, extrapolated"
    record_name: ClassVar[str] = "fd_infinity"
    is_cautious: ClassVar[bool] = False

    @property
    def minimum_images(self) -> int:
        """Four times as many images as features, so that a half has twice as many."""
        return 4 * len(self.reference.mean)

    def measure(self, rows: ImageRows) -> Measurement:
        """See :meth:`edm2lite.metrics.Metric.measure`.

        Raises:
            ValueError: If there are fewer than 8 images.
        """
        if rows.num < 2 * GROUPS:
            raise ValueError(f"{self.name} needs at least {2 * GROUPS} images, got {rows.num}")
        total, quarters = rows.moments
        check_same_features(FeatureStats.of(total, self.extractor, rows.source), self.reference)
        features = len(self.reference.mean)
        if rows.num < _ENOUGH * features:
            logger.warning(
                "%s: %d images for %d features; an extrapolated distance needs %g per feature for"
                " its interval to be right",
                rows.source, rows.num, features, _ENOUGH,
            )  # fmt: skip
        influences = frechet_influences(rows, self.reference.mean, self._root)
        influences[1:] *= np.sqrt(2 / 3 * Tails.of(influences).certainty)
        value, plain = extrapolated(quarters, self.reference.mean, self._root)
        return Measurement(value, influences, {"fd": plain})


class FIDInfinity(FrechetInfinity):
    """FID extrapolated to infinitely many images (FID-infinity, arXiv 1911.07023).

    For a reference with features other than Inception's it makes a :class:`FrechetInfinity`.

    Example:
        >>> FIDInfinity.of_features("digits").name
        'fd_infinity'
    """

    name: ClassVar[str] = "fid_infinity"
    label: ClassVar[str] = "FID-infinity"
    record_name: ClassVar[str] = "fd_infinity"

    @classmethod
    def of_features(cls, extractor: str) -> type[FrechetDistance]:
        """See :meth:`edm2lite.metrics.frechet.FrechetDistance.of_features`."""
        return cls if extractor == INCEPTION else FrechetInfinity

    @property
    def title(self) -> str:
        """Its name, which says the extractor."""
        return self.name


class FDDinov2Infinity(FrechetInfinity):
    """FD-DINOv2 extrapolated to infinitely many images."""

    name: ClassVar[str] = "fd_dinov2_infinity"
    label: ClassVar[str] = "FD-DINOv2-infinity"
    axis_label: ClassVar[str] = "Fréchet distance, DINOv2, extrapolated"
    record_name: ClassVar[str] = "fd_infinity"
    _is_dinov2: ClassVar[bool] = True

    @property
    def title(self) -> str:
        """Its name, which says the extractor."""
        return self.name


def extrapolated(quarters: list[RunningMoments], mean: Array, root: Array) -> tuple[float, float]:
    """The distance at infinitely many images, and the one at all images.

    Args:
        quarters: Moments of each quarter of the images.
        mean: Mean of the reference, [F].
        root: Square root of the covariance of the reference, [F, F].

    Example:
        >>> quarters = [RunningMoments() for _ in range(4)]
        >>> for i, quarter in enumerate(quarters):
        ...     quarter.add(np.random.default_rng(i).standard_normal((2000, 3)))
        >>> value, plain = extrapolated(quarters, np.zeros(3), np.eye(3))
        >>> abs(value) < plain
        True
    """
    distances = {}
    for count in WEIGHTS:
        each = []
        for union in itertools.combinations(quarters, count):
            moments = RunningMoments()
            for quarter in union:
                moments.merge(quarter)
            each.append(distance_of(moments, mean, root))
        distances[count] = float(np.mean(each))
    value = sum(weight * distances[count] for count, weight in WEIGHTS.items())
    return value, distances[GROUPS]
