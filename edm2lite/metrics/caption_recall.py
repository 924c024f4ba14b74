"""Whether images show what their captions say: each has to find the image of its caption again.

The features of an image are compared, by the cosine, with those of all reference images. Its rank
is that of the nearest of those that have its caption; recall at rank k is the share of images of
rank k or better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from edm2lite.dataset.captions import Captions
from edm2lite.metrics.features import FeatureMetric
from edm2lite.metrics.inputs import MetricInputs
from edm2lite.metrics.measurement import ImageRows, Measurement
from edm2lite.metrics.metric import Metric, Needs
from edm2lite.metrics.moments import Array
from edm2lite.strict_json import shown

_SAME = 1e-6
"""Cosines that differ by less, as those of copies of an image do by rounding, are equal."""
_ROWS = 1024


class CaptionRecall5(FeatureMetric):
    """The share of images that have an image of their caption among the five nearest ones.

    The reference states captions and features of its images. Where several images are equally near,
    any order of them is equally likely.

    Example:
        >>> from edm2lite.metrics.extractors import Extractor
        >>> from edm2lite.metrics.feature_stats import FeatureStats
        >>> features, captions = np.eye(9, dtype=np.float32), [(f"number {i}",) for i in range(9)]
        >>> reference = FeatureStats(9, np.zeros(9), np.eye(9), "x", "", "", "made up",
        ...                          features=features, captions=Captions(captions))
        >>> metric = CaptionRecall5(reference, Extractor("x", None, None, ""))
        >>> images = ImageRows.of(np.eye(9)[:2], captions=["number 0", "number 7"])
        >>> round(metric.measure(images).value, 3)  # the second is as near to eight of the nine
        0.75
    """

    name: ClassVar[str] = "caption_recall_5"
    label: ClassVar[str] = "caption R@5"
    axis_label: ClassVar[str] = "caption recall at rank 5"
    lower_is_better: ClassVar[bool] = False
    is_share: ClassVar[bool] = True
    needs: ClassVar[Needs] = "reference features"
    rank: ClassVar[int] = 5
    """Rank up to which an image of the caption counts."""

    @classmethod
    def create(cls, inputs: MetricInputs) -> list[Metric]:
        """See :meth:`edm2lite.metrics.Metric.create`; the reference must state captions."""
        for reference in cls.choose(inputs.references):
            if reference.stats.features is not None and reference.stats.captions is None:
                raise ValueError(
                    f"{cls.name} needs the captions of the reference images, {reference.name} has"
                    " none; make it of a data set with captions by edm2lite evaluate stats"
                    " --features"
                )
        return super().create(inputs)

    @property
    def protocol(self) -> dict[str, Any]:
        """See :attr:`edm2lite.metrics.Metric.protocol`."""
        assert self.reference.features is not None and self.reference.captions is not None
        state = xxhash.xxh3_64(self.reference.features.tobytes())
        state.update(self.reference.captions.digest.encode())
        return {**super().protocol, "captions": state.hexdigest()}

    def measure(self, rows: ImageRows) -> Measurement:
        """See :meth:`edm2lite.metrics.Metric.measure`."""
        assert self.reference.features is not None and self.reference.captions is not None
        found = recalled(
            rows.array(), rows.stated_captions(self.name), self.reference.features,
            self.reference.captions, self.rank,
        )  # fmt: skip
        return Measurement.of_mean(found, rows.num_classes)


class CaptionRecall1(CaptionRecall5):
    """The share of images to which no image is nearer than one of their caption."""

    name: ClassVar[str] = "caption_recall_1"
    label: ClassVar[str] = "caption R@1"
    axis_label: ClassVar[str] = "caption recall at rank 1"
    rank: ClassVar[int] = 1


def recalled(
    features: NDArray[np.float32],
    captions: Sequence[str],
    reference: NDArray[np.float32],
    known: Captions,
    rank: int,
) -> Array:
    """[N] probability that an image of the caption is among the ``rank`` nearest ones.

    It is 0 or 1 except where images are equally near: if g images of other captions are nearer than
    the nearest one of the caption and e as near, it is ``(rank - g) / (e + 1)`` between 0 and 1.

    Args:
        features: Features of the images, [N, F].
        captions: Caption of each image.
        reference: Features of the reference images, [M, F].
        known: Captions of the reference images.
        rank: Rank up to which an image counts.

    Raises:
        ValueError: If no reference image has the caption of an image.

    Example:
        >>> eye = np.eye(3, dtype=np.float32)
        >>> recalled(eye[[0, 1]], ["a", "c"], eye, Captions([("a",), ("b",), ("c",)]), rank=2)
        array([1. , 0.5])
    """
    rows_of: dict[str, list[int]] = {}
    for row, texts in enumerate(known.texts):
        for text in texts:
            rows_of.setdefault(text, []).append(row)
    missing = [text for text in captions if text not in rows_of]
    if missing:
        raise ValueError(
            f"captions must be among those of the reference images, {shown(missing[0])} is not;"
            " generate images of captions of the reference"
        )
    ours, theirs = _unit(features), _unit(reference)
    found = np.empty(len(ours))
    for begin in range(0, len(ours), _ROWS):
        cosines = ours[begin : begin + _ROWS] @ theirs.T
        for i, row in enumerate(cosines, begin):
            targets = rows_of[captions[i]]
            best = row[targets].max()
            others = np.delete(row, targets)
            nearer = int((others > best + _SAME).sum())
            equal = int((np.abs(others - best) <= _SAME).sum())
            found[i] = np.clip((rank - nearer) / (equal + 1), 0, 1)
    return found


def _unit(features: NDArray[np.float32]) -> Array:
    """Rows of length 1, in float64; a row of zeros stays one."""
    wide = features.astype(np.float64)
    unit: Array = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30)
    return unit
