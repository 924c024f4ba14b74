"""Precision and recall: how much of each set lies within the other, in feature space.

The manifold of a set of images is the union of balls around their features, each as large as the
distance to the third nearest neighbor within the set. Precision is the share of generated images
within the manifold of the real ones, recall the share of real images within the manifold of the
generated ones (arXiv 1904.06991), both as torch-fidelity computes them.
"""

from __future__ import annotations

import functools
from typing import ClassVar

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from edm2lite.metrics.features import FeatureMetric
from edm2lite.metrics.influence import block_influences
from edm2lite.metrics.measurement import ImageRows, Measurement
from edm2lite.metrics.metric import Needs
from edm2lite.metrics.moments import Array

NEIGHBORS = 3
BLOCKS = 24
"""Number of blocks of images that the jackknife of recall leaves out in turn."""

_ROWS = 10_000  # at a time, as in torch-fidelity: rounding may depend on it
_TILE = 2_000


def precision_recall(
    generated: NDArray[np.float32], real: NDArray[np.float32]
) -> tuple[float, float]:
    """Precision and recall.

    Args:
        generated: Features of the images, [N, F].
        real: Features of the reference images, [M, F].

    Raises:
        ValueError: If there are fewer than 4 images on a side.

    Example:
        >>> real = np.arange(8, dtype=np.float32)[:, None]
        >>> precision_recall(real[:4], real)
        (1.0, 0.875)
    """
    made, kept = torch.from_numpy(generated), torch.from_numpy(real)
    precision = share(covered(made, kept, radii(kept)))
    return precision, share(covered(kept, made, radii(made)))


class _ManifoldMetric(FeatureMetric):
    number_format: ClassVar[str] = ".4f"
    lower_is_better: ClassVar[bool] = False
    is_share: ClassVar[bool] = True
    needs: ClassVar[Needs] = "reference features"

    @property
    def protocol(self) -> dict[str, object]:
        """See :attr:`edm2lite.metrics.Metric.protocol`."""
        features = self.reference_features().numpy()
        return {**super().protocol, "features": xxhash.xxh3_64_hexdigest(features.tobytes())}

    @property
    def minimum_images(self) -> int:
        """Both depend on the number of images, as the size of the balls does."""
        return 512


class Precision(_ManifoldMetric):
    """The share of images within the manifold of the reference images: a mean over images.

    Example:
        >>> from edm2lite.metrics.extractors import Extractor
        >>> from edm2lite.metrics.feature_stats import FeatureStats
        >>> real = np.arange(8, dtype=np.float32)[:, None]
        >>> moments = real.mean(axis=0), np.cov(real.T)[None, None]
        >>> stats = FeatureStats(8, *moments, "x", "", "", "made up", features=real)
        >>> metric = Precision(stats, Extractor("x", None, None, ""))
        >>> metric.measure(ImageRows.of(np.array([[3.5], [99.0]]))).value
        0.5
    """

    name: ClassVar[str] = "precision"
    label: ClassVar[str] = "precision"

    def measure(self, rows: ImageRows) -> Measurement:
        """See :meth:`edm2lite.metrics.Metric.measure`."""
        real = self.reference_features()
        inside = covered(torch.from_numpy(rows.array()), real, self._radii)
        measured = Measurement.of_mean(inside.double().numpy(), rows.num_classes)
        return Measurement(share(inside), measured.influences)

    @functools.cached_property
    def _radii(self) -> Tensor:
        return radii(self.reference_features())


class Recall(_ManifoldMetric):
    """The share of reference images within the manifold of the images.

    An image has a ball of its own and limits those of its neighbors, so that no simple number says
    what it adds. Intervals come from the jackknife over :data:`BLOCKS` blocks of consecutive
    images, which is too wide rather than too narrow; with fewer than two images in a block there is
    none.
    """

    name: ClassVar[str] = "recall"
    label: ClassVar[str] = "recall"

    def measure(self, rows: ImageRows) -> Measurement:
        """See :meth:`edm2lite.metrics.Metric.measure`."""
        images, real = torch.from_numpy(rows.array()), self.reference_features()
        inside = covered(real, images, radii(images))
        if len(images) < 2 * BLOCKS:
            return Measurement(share(inside))
        influences = block_influences(recall_without_blocks(images, real), len(images))
        return Measurement(share(inside), influences)


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances of rows [N, F] and [M, F]: [N, M]."""
    return torch.cat([torch.cdist(a, part) for part in torch.split(b, _ROWS)], dim=1)


def radii(centers: Tensor) -> Tensor:
    """Distance of each row [N, F] to its third nearest neighbor among the others, [N].

    Raises:
        ValueError: If there are fewer than 4 rows.

    Example:
        >>> radii(torch.tensor([[0.0], [1.0], [2.0], [4.0]]))
        tensor([4., 3., 2., 4.])
    """
    if len(centers) <= NEIGHBORS:
        raise ValueError(
            f"precision and recall need at least {NEIGHBORS + 1} images, got {len(centers)}"
        )
    parts = torch.split(centers, _ROWS)
    return torch.cat([distances(p, centers).kthvalue(NEIGHBORS + 1).values for p in parts])


def covered(points: Tensor, centers: Tensor, radius: Tensor) -> Tensor:
    """Whether each point [N, F] lies in a ball around one of the centers [M, F]: [N] bool.

    Args:
        points: The points, [N, F].
        centers: Centers of the balls, [M, F].
        radius: Radii of the balls, [M].

    Example:
        >>> covered(torch.tensor([[0.5], [3.0]]), torch.tensor([[0.0]]), torch.tensor([1.0]))
        tensor([ True, False])
    """
    parts = torch.split(points, _ROWS)
    return torch.cat([(distances(part, centers) <= radius).any(dim=1) for part in parts])


def share(inside: Tensor) -> float:
    """Share of true values, rounded as float32 is."""
    return inside.float().mean().item()


def recall_without_blocks(images: Tensor, real: Tensor) -> Array:
    """[BLOCKS] recall without each of the blocks of consecutive images.

    Args:
        images: Features of the images, [N, F]; blocks are those of :func:`numpy.array_split`.
        real: Features of the reference images, [M, F].
    """
    blocks = [torch.from_numpy(b) for b in np.array_split(np.arange(len(images)), BLOCKS)]
    radius, without = _radii_without_blocks(images, blocks)
    # without a block, the balls of its neighbors grow: few images, and they alone are looked at
    grown = [torch.nonzero(without[:, g] > radius)[:, 0] for g in range(BLOCKS)]
    grown = [g[~torch.isin(g, block)] for g, block in zip(grown, blocks, strict=True)]
    inside = torch.zeros(BLOCKS, dtype=torch.int64)
    for part in torch.split(real, _TILE):
        d = distances(part, images)
        hits = torch.stack([(d[:, b] <= radius[b]).any(dim=1) for b in blocks], dim=1)
        kept = hits.sum(dim=1, keepdim=True) > hits.long()  # by a ball of another block
        more = [(d[:, g] <= without[g, i]).any(dim=1) for i, g in enumerate(grown)]
        inside += (kept | torch.stack(more, dim=1)).sum(dim=0)
    return inside.double().numpy() / len(real)


def _radii_without_blocks(images: Tensor, blocks: list[Tensor]) -> tuple[Tensor, Tensor]:
    """[N] radii among all images, and [N, BLOCKS] those without each block."""
    nearest = torch.full((len(images), BLOCKS, NEIGHBORS), torch.inf)
    for rows in torch.split(torch.arange(len(images)), _TILE):
        d = distances(images[rows], images)
        d[torch.arange(len(rows)), rows] = torch.inf
        for i, block in enumerate(blocks):
            found = min(NEIGHBORS, len(block))
            nearest[rows, i, :found] = d[:, block].topk(found, largest=False).values
    others = [[i for i in range(BLOCKS) if i != g] for g in range(BLOCKS)]
    without = [nearest[:, kept].flatten(1).kthvalue(NEIGHBORS).values for kept in others]
    return nearest.flatten(1).kthvalue(NEIGHBORS).values, torch.stack(without, dim=1)
