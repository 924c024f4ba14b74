"""The list of metrics, by name; nothing is imported before a metric is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias, Union

from edm2lite.kinds import Kinds

if TYPE_CHECKING:
    from edm2lite.metrics.metric import Metric

METRICS: Kinds[type[Metric]] = Kinds(
    "metric",
    {
        "fid": "edm2lite.metrics.frechet:FID",
        "fd_dinov2": "edm2lite.metrics.frechet:FDDinov2",
        "kid": "edm2lite.metrics.kernel:KID",
        "precision": "edm2lite.metrics.manifold:Precision",
        "recall": "edm2lite.metrics.manifold:Recall",
        "loss": "edm2lite.metrics.held_out_loss:HeldOutLoss",
        "fd": "edm2lite.metrics.frechet:FrechetDistance",
        "fid_infinity": "edm2lite.metrics.extrapolation:FIDInfinity",
        "fd_infinity": "edm2lite.metrics.extrapolation:FrechetInfinity",
        "fd_dinov2_infinity": "edm2lite.metrics.extrapolation:FDDinov2Infinity",
        "caption_recall_1": "edm2lite.metrics.caption_recall:CaptionRecall1",
        "caption_recall_5": "edm2lite.metrics.caption_recall:CaptionRecall5",
        "clip_score": "edm2lite.metrics.clip_score:CLIPScore",
    },
)
"""Metrics by name: short ones of edm2lite's, or ``module:Class`` of your own."""

MetricName: TypeAlias = Union[str, "type[Metric]"]
"""Name of a metric, or its class."""

ALIASES = {
    "prc": ("precision", "recall"),
    "caption_recall": ("caption_recall_1", "caption_recall_5"),
}
"""Other names, and what each stands for."""


def find_metrics(names: str | Sequence[MetricName]) -> list[type[Metric]]:
    """Classes of the metrics that are named.

    Args:
        names: Names in :data:`METRICS` or :data:`ALIASES`, ``module:Class``, or classes; in a list,
            or in one text separated by commas.

    Raises:
        ValueError: If there is no metric of a name.

    Example:
        >>> [metric.name for metric in find_metrics("fid,prc")]
        ['fid', 'precision', 'recall']
    """
    listed = names.split(",") if isinstance(names, str) else names
    found: list[type[Metric]] = []
    for name in listed:
        if isinstance(name, str):
            found += [METRICS.find(kind) for kind in ALIASES.get(name, (name,))]
        else:
            found.append(name)
    return list(dict.fromkeys(found))


def find_metric(name: MetricName) -> type[Metric]:
    """Class of one metric.

    Raises:
        ValueError: If there is no metric of the name, or it stands for several.

    Example:
        >>> find_metric("kid").label
        'KID'
    """
    found = find_metrics([name])
    if len(found) > 1:
        raise ValueError(
            f"one metric must be named, {name} is {len(found)}: give one of"
            f" {', '.join(metric.name for metric in found)}"
        )
    return found[0]
