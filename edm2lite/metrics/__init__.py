"""How good images are: features, distances, and the registry of metrics that all commands use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edm2lite.lazy import exports

if TYPE_CHECKING:
    from edm2lite.metrics.evaluation import Score as Score
    from edm2lite.metrics.evaluation import evaluate as evaluate
    from edm2lite.metrics.extractors import Extractor as Extractor
    from edm2lite.metrics.extractors import open_extractor as open_extractor
    from edm2lite.metrics.feature_stats import FeatureStats as FeatureStats
    from edm2lite.metrics.features import FeatureMetric as FeatureMetric
    from edm2lite.metrics.held_out_loss import DenoisingRows as DenoisingRows
    from edm2lite.metrics.measurement import ImageRows as ImageRows
    from edm2lite.metrics.measurement import Measurement as Measurement
    from edm2lite.metrics.metric import ImageMetric as ImageMetric
    from edm2lite.metrics.metric import Metric as Metric
    from edm2lite.metrics.reference import statistics as statistics
    from edm2lite.metrics.reference import write_statistics as write_statistics
    from edm2lite.metrics.registry import METRICS as METRICS
    from edm2lite.metrics.registry import find_metric as find_metric
    from edm2lite.metrics.registry import find_metrics as find_metrics

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "edm2lite.metrics.evaluation": "Score evaluate",
        "edm2lite.metrics.extractors": "Extractor open_extractor",
        "edm2lite.metrics.feature_stats": "FeatureStats",
        "edm2lite.metrics.features": "FeatureMetric",
        "edm2lite.metrics.held_out_loss": "DenoisingRows",
        "edm2lite.metrics.measurement": "ImageRows Measurement",
        "edm2lite.metrics.metric": "ImageMetric Metric",
        "edm2lite.metrics.reference": "statistics write_statistics",
        "edm2lite.metrics.registry": "METRICS find_metric find_metrics",
    },
)
