"""What metrics are made of: references with their extractors, and held-out images."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from edm2lite.dataset import ImageDataset, open_dataset
from edm2lite.metrics.extractors import Extractor, is_dinov2, open_extractor
from edm2lite.metrics.feature_stats import FeatureStats, extractor_weights


@dataclass(frozen=True)
class Reference:
    """Reference statistics, and the extractor that they were made with.

    Attributes:
        name: Name in messages: the file, or what the statistics are of.
        stats: The statistics.
        weights: Weights file of the extractor in place of the recorded one, or None.
        device: Device of the extractor.
    """

    name: str
    stats: FeatureStats
    weights: Path | None
    device: torch.device

    @property
    def is_dinov2(self) -> bool:
        """Whether the features are DINOv2's."""
        return is_dinov2(self.stats.extractor)

    @functools.cached_property
    def extractor(self) -> Extractor:
        """The extractor, opened when it is first needed.

        Raises:
            FileNotFoundError: If its weights are not there.
        """
        weights = extractor_weights(self.stats, self.weights)
        return open_extractor(self.stats.extractor, weights, self.device, trusted=False)


@dataclass(frozen=True)
class MetricInputs:
    """What a metric can be made of.

    Attributes:
        references: Reference statistics.
        data: Held-out images, or None.
        batch_size: Number of images in each call of a network.
        device: Device that computes.
    """

    references: tuple[Reference, ...]
    data: ImageDataset | None
    batch_size: int
    device: torch.device

    @classmethod
    def of(
        cls,
        references: FeatureStats | str | Path | Sequence[FeatureStats | str | Path] | None,
        data: ImageDataset | str | Path | None,
        weights: Sequence[str | Path] = (),
        batch_size: int = 64,
        device: torch.device | str = "cpu",
    ) -> MetricInputs:
        """From what a person names.

        Args:
            references: Statistics or their files, one or several.
            data: Held-out data set, or its name.
            weights: Weights files of the extractors, one for each reference or none at all.
            batch_size: Number of images in each call of a network.
            device: Device that computes.

        Raises:
            FileNotFoundError: If a file is not there.
            ValueError: If a file is of another kind, or the numbers of references and weights
                differ.
        """
        if references is None:
            references = ()
        elif isinstance(references, FeatureStats | str | Path):
            references = (references,)
        if weights and len(weights) != len(references):
            raise ValueError(
                "weights must be given once for each reference, in the same order, or not at all;"
                f" got {len(weights)} for {len(references)}"
            )
        place = torch.device(device)
        files: list[Path | None] = [Path(w) for w in weights] or [None] * len(references)
        opened = tuple(
            found
            for reference, file in zip(references, files, strict=True)
            for found in _opened(reference, file, place)
        )
        dataset = data if isinstance(data, ImageDataset | None) else open_dataset(data)
        return cls(opened, dataset, batch_size, place)


def _opened(
    reference: FeatureStats | str | Path, weights: Path | None, device: torch.device
) -> list[Reference]:
    """The statistics themselves, or all those of a file."""
    if isinstance(reference, FeatureStats):
        reference.check_preprocessing(reference.source)
        return [Reference(reference.source, reference, weights, device)]
    found = FeatureStats.load_all(reference)
    if len(found) > 1 and weights is not None:
        names = " and ".join(stats.extractor for stats in found)
        raise ValueError(
            f"weights must be those of one extractor, {reference} has statistics of {names}; write"
            f" each to a file by edm2lite evaluate stats {reference} --extractor NAME --out FILE"
        )
    return [Reference(str(reference), stats, weights, device) for stats in found]
