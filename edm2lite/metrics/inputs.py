"""What metrics are made of: references with their extractors, and held-out images."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from edm2lite.dataset import ImageDataset, open_dataset
from edm2lite.dataset.captions import Captions
from edm2lite.metrics.extractors import Extractor, is_dinov2, open_extractor
from edm2lite.metrics.feature_stats import FeatureStats


@dataclass(frozen=True)
class Reference:
    """Reference statistics, and the extractor that they were made with.

    Attributes:
        name: Name in messages: the file, or what the statistics are of.
        stats: The statistics.
        weights: Weights file of the extractor, or None.
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
        weights = _weights_file(self.stats, self.weights)
        return open_extractor(self.stats.extractor, weights, self.device, trusted=False)


@dataclass(frozen=True)
class MetricInputs:
    """What a metric can be made of.

    Attributes:
        references: Reference statistics.
        data: Held-out images, or None.
        batch_size: Number of images in each call of a network.
        device: Device that computes.
        clip: Folder of a CLIP, or None.
    """

    references: tuple[Reference, ...]
    data: ImageDataset | None
    batch_size: int
    device: torch.device
    clip: Path | None = None

    @property
    def captions(self) -> Captions | None:
        """Captions of the first reference that states some."""
        stated = (reference.stats.captions for reference in self.references)
        return next((captions for captions in stated if captions is not None), None)

    @classmethod
    def of(
        cls,
        references: FeatureStats | str | Path | Sequence[FeatureStats | str | Path] | None,
        data: ImageDataset | str | Path | None,
        weights: Sequence[str | Path] = (),
        batch_size: int = 64,
        device: torch.device | str = "cpu",
        clip: str | Path | None = None,
    ) -> MetricInputs:
        """From what a person names.

        Args:
            references: Statistics or their files, one or several.
            data: Held-out data set, or its name.
            weights: Weights files of the extractors: one for each reference, or for each that was
                made with a weights file.
            batch_size: Number of images in each call of a network.
            device: Device that computes.
            clip: Folder of a CLIP.

        Raises:
            FileNotFoundError: If a file is not there.
            ValueError: If a file is of another kind, or the numbers of references and weights
                differ.
        """
        if references is None:
            references = ()
        elif isinstance(references, FeatureStats | str | Path):
            references = (references,)
        place = torch.device(device)
        statistics = [_loaded(reference) for reference in references]
        recording = [i for i, found in enumerate(statistics) if any(s.weights for s in found)]
        if len(weights) not in (0, len(references), len(recording)):
            raise ValueError(
                "weights must be given once for each reference, or for each that was made with a"
                f" weights file, in the same order; got {len(weights)} for {len(references)}, of"
                f" which {len(recording)} were"
            )
        order = range(len(references)) if len(weights) == len(references) else recording
        files = dict(zip(order, map(Path, weights), strict=False))
        opened = tuple(
            found
            for i, reference in enumerate(references)
            for found in _opened(reference, statistics[i], files.get(i), place)
        )
        dataset = data if isinstance(data, ImageDataset | None) else open_dataset(data)
        return cls(opened, dataset, batch_size, place, None if clip is None else Path(clip))


def _loaded(reference: FeatureStats | str | Path) -> list[FeatureStats]:
    """The statistics themselves, or all those of a file."""
    if not isinstance(reference, FeatureStats):
        return FeatureStats.load_all(reference)
    reference.check_preprocessing(reference.source)
    return [reference]


def _opened(
    reference: FeatureStats | str | Path,
    found: list[FeatureStats],
    weights: Path | None,
    device: torch.device,
) -> list[Reference]:
    if len(found) > 1 and weights is not None:
        names = " and ".join(stats.extractor for stats in found)
        raise ValueError(
            f"weights must be those of one extractor, {reference} has statistics of {names}; write"
            f" each to a file by edm2lite evaluate stats {reference} --extractor NAME --out FILE"
        )
    named = None if isinstance(reference, FeatureStats) else str(reference)
    return [Reference(named or stats.source, stats, weights, device) for stats in found]


def _weights_file(stats: FeatureStats, weights: Path | None) -> Path | None:
    """Weights file of the extractor that made ``stats``.

    Args:
        stats: The statistics.
        weights: The file, or None.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If only the file of the statistics names it: a file may name any other, and
            does not have it opened.
    """
    if weights is not None or not stats.weights:
        return weights
    if stats.is_read:
        raise ValueError(
            f"the weights of extractor {stats.extractor} must be given, the statistics were made"
            f" with {stats.weights}; if that is the file, add --weights {stats.weights}"
        )
    recorded = Path(stats.weights)
    if not recorded.is_file():
        raise FileNotFoundError(
            f"the statistics were made with extractor weights {recorded}, which are not there; give"
            " the file with --weights"
        )
    return recorded
