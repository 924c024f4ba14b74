"""Metrics that compare the features of images with those of reference images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from edm2lite.metrics.extractors import Extractor
from edm2lite.metrics.feature_stats import FeatureStats
from edm2lite.metrics.inputs import MetricInputs, Reference
from edm2lite.metrics.metric import ImageMetric, Metric, Needs
from edm2lite.network.conditioning import Conditioning


class FeatureMetric(ImageMetric):
    """A metric whose rows are features of the images, compared with a reference.

    Args:
        reference: Statistics of the reference images.
        extractor: The extractor that they were made with.

    Example:
        The distance between mean features:

        >>> import numpy as np
        >>> from edm2lite.metrics.measurement import ImageRows, Measurement
        >>> class MeanDistance(FeatureMetric):
        ...     def measure(self, rows):
        ...         offset = rows.array().mean(axis=0) - self.reference.mean
        ...         return Measurement(float(np.linalg.norm(offset)))
        >>> reference = FeatureStats(9, np.zeros(2), np.eye(2), "x", "", "", "made up")
        >>> metric = MeanDistance(reference, Extractor("x", None, None, ""))
        >>> metric.measure(ImageRows.of(np.array([[3.0, 4.0], [3.0, 4.0]]))).value
        5.0
    """

    needs: ClassVar[Needs] = "reference"
    """Set to ``"reference features"`` if moments of the reference images are not enough."""

    def __init__(self, reference: FeatureStats, extractor: Extractor):
        self.reference, self.extractor = reference, extractor

    @classmethod
    def choose(cls, references: Sequence[Reference]) -> list[Reference]:
        """The references that the metric is computed for; by default those that are not DINOv2's.

        Metrics that could be of any features are of DINOv2's only if there are no others.
        """
        return [r for r in references if not r.is_dinov2] or list(references)

    @classmethod
    def create(cls, inputs: MetricInputs) -> list[Metric]:
        """See :meth:`edm2lite.metrics.Metric.create`."""
        chosen = cls.choose(inputs.references)
        if not chosen:
            raise ValueError(
                f"{cls.name} needs reference statistics, got none; give --ref, a file of edm2lite"
                " evaluate stats"
            )
        for reference in chosen:
            if cls.needs == "reference features" and reference.stats.features is None:
                raise ValueError(
                    f"{cls.name} needs the features of the reference images, {reference.name} has"
                    " only their moments; make it with edm2lite evaluate stats --features"
                )
        return [cls(reference.stats, reference.extractor) for reference in chosen]

    def rows(self, images: Tensor, conditioning: Conditioning) -> NDArray[Any]:
        """See :meth:`edm2lite.metrics.ImageMetric.rows`."""
        return self.extractor.features(images)

    @property
    def row_key(self) -> dict[str, Any]:
        """See :attr:`edm2lite.metrics.ImageMetric.row_key`."""
        key = {"extractor": self.extractor.name, "digest": self.extractor.weights_digest}
        if self.extractor.preprocessing:
            key["preprocessing"] = self.extractor.preprocessing
        return key

    @property
    def protocol(self) -> dict[str, Any]:
        """See :attr:`edm2lite.metrics.Metric.protocol`."""
        return {"extractor": self.reference.extractor, "reference": self.reference.digest}

    def check_images(self, name: str, shape: tuple[int, ...]) -> None:
        """See :meth:`edm2lite.metrics.ImageMetric.check_images`."""
        self.reference.check_images(name, shape)

    def reference_features(self) -> Tensor:
        """Features of the reference images, [M, F] float32."""
        assert self.reference.features is not None, self.reference.source  # checked by create
        return torch.from_numpy(self.reference.features)
