"""The kernel distance (KID), and how it depends on each image.

KID is the squared maximum mean discrepancy under the kernel ``k(x, y) = (x . y / F + 1)**3``, by
its unbiased estimate

    U(X, Y) = mean of k(x, x') over x != x' + mean of k(y, y') over y != y' - 2 mean of k(x, y)

(arXiv 1801.01401). torch-fidelity's number, and ours, is the mean of U over 100 random subsets of
at most 1000 images of each side.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from edm2lite.metrics.features import FeatureMetric
from edm2lite.metrics.influence import centered
from edm2lite.metrics.measurement import ImageRows, Measurement
from edm2lite.metrics.metric import Needs
from edm2lite.metrics.moments import Array

SUBSETS = 100
SUBSET_SIZE = 1000
_SEED = 2020


def kernel_distance(
    generated: NDArray[np.float32], real: NDArray[np.float32]
) -> tuple[float, float]:
    """KID and its standard deviation over 100 subsets of at most 1000 images, by torch-fidelity.

    Args:
        generated: Features of the images, [N, F].
        real: Features of the reference images, [M, F].

    Example:
        >>> rows = np.random.default_rng(0).standard_normal((40, 2)).astype(np.float32)
        >>> kernel_distance(rows + 3, rows)[0] > 10
        True
    """
    from torch_fidelity.metric_kid import kid_features_to_metric

    values = kid_features_to_metric(
        torch.from_numpy(generated), torch.from_numpy(real), kid_subsets=SUBSETS,
        kid_subset_size=_subset_size(len(generated), len(real)), rng_seed=_SEED, verbose=False,
    )  # fmt: skip
    return values["kernel_inception_distance_mean"], values["kernel_inception_distance_std"]


class KID(FeatureMetric):
    """The kernel distance in the features of the reference's extractor.

    Example:
        >>> from edm2lite.metrics.extractors import Extractor
        >>> from edm2lite.metrics.feature_stats import FeatureStats
        >>> real = np.random.default_rng(0).standard_normal((40, 2)).astype(np.float32)
        >>> stats = FeatureStats(40, real.mean(0), np.cov(real.T), "x", "", "", "", (), real)
        >>> metric = KID(stats, Extractor("x", None, None, ""))
        >>> metric.measure(ImageRows.of(real + 3)).value == kernel_distance(real + 3, real)[0]
        True
    """

    name: ClassVar[str] = "kid"
    label: ClassVar[str] = "KID"
    axis_label: ClassVar[str] = "kernel distance (KID)"
    number_format: ClassVar[str] = ".6f"
    needs: ClassVar[Needs] = "reference features"

    @property
    def protocol(self) -> dict[str, object]:
        """See :attr:`edm2lite.metrics.Metric.protocol`."""
        features = self.reference_features().numpy()
        return {**super().protocol, "features": xxhash.xxh3_64_hexdigest(features.tobytes())}

    def measure(self, rows: ImageRows) -> Measurement:
        """See :meth:`edm2lite.metrics.Metric.measure`."""
        generated, real = rows.array(), self.reference_features().numpy()
        if min(len(generated), len(real)) < 3:
            raise ValueError(f"kid needs at least 3 images, got {len(generated)} and {len(real)}")
        value, deviation = kernel_distance(generated, real)
        influences = kernel_influences(generated, real, rows.num_classes)
        return Measurement(value, influences, {"subset_deviation": deviation})


def kernel_influences(
    generated: NDArray[np.float32], real: NDArray[np.float32], num_classes: int = 0
) -> Array:
    """[1, N] influences of the images on their kernel distance to a reference.

    Within a subset of m images, leaving x out changes U by -1 / (m - 1) times

        2 (m - 1) / (m - 2) (mean of k(x, x') over the others) - 2 (mean of k(x, y))

    up to a constant, exactly. An image counts once in every subset that it is in; other seeds have
    the same subsets. Close to a distance of 0 this jackknife is too wide rather than too narrow.

    Args:
        generated: Features of the images, [N, F].
        real: Features of the reference images, [M, F].
        num_classes: Number of classes if they come in turn, else 0.
    """
    num, size = len(generated), _subset_size(len(generated), len(real))
    random = np.random.RandomState(_SEED)  # draws as torch-fidelity does
    totals, counts = np.zeros(num), np.zeros(num)
    for _ in range(SUBSETS):
        own = random.choice(num, size, replace=False)
        others = random.choice(len(real), size, replace=False)
        x, y = generated[own].astype(np.float64), real[others].astype(np.float64)
        kernel = polynomial_kernel(x, x)
        np.fill_diagonal(kernel, 0)
        to_real = polynomial_kernel(x, y).mean(axis=1)
        each = 2 / (size - 2) * kernel.sum(axis=1) - 2 * to_real
        totals[own] += each - each.mean()  # other subsets have other constants
        counts[own] += 1
    each = totals / np.maximum(counts, 1)
    return centered(each[None], num_classes, counts * num / counts.sum())


def polynomial_kernel(x: Array, y: Array) -> Array:
    """``(x . y / F + 1)**3`` of each pair of rows: [N, F] and [M, F] -> [N, M].

    Example:
        >>> polynomial_kernel(np.ones((1, 2)), np.array([[1.0, 1.0], [0.0, 0.0]]))
        array([[8., 1.]])
    """
    base: Array = x @ y.T / x.shape[1] + 1
    return base * base * base


def _subset_size(*counts: int) -> int:
    return min(SUBSET_SIZE, *counts)
