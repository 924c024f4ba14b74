"""The two metrics of a sweep: the Fréchet distance of generated images, and the denoising loss."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edm2lite.dataset import ImageDataset
from edm2lite.metrics.extractors import Extractor
from edm2lite.metrics.fidelity import FeatureStats, check_same_features, frechet_distance
from edm2lite.metrics.held_out_loss import DenoisingRows, check_dataset
from edm2lite.metrics.influence import influences, moments_of, square_root
from edm2lite.metrics.moments import Array
from edm2lite.metrics.rows import SHOWN, Make
from edm2lite.models.loading import Model
from edm2lite.network.conditioning import ClassLabel, values_of
from edm2lite.sampling.images import ImageGenerator
from edm2lite.sampling.settings import Sampling

Parts = Callable[[], Iterator[Array]]


@dataclass(frozen=True)
class Measured:
    """Attributes:
    value: The metric.
    spread: [J, num], how it depends on each image, see :mod:`edm2lite.metrics.influence`.
    details: Further figures.
    """

    value: float
    spread: NDArray[np.float64]
    details: dict[str, float]


class Metric(Protocol):
    """Rows of numbers per image, and a figure from all of them."""

    @property
    def name(self) -> str: ...

    @property
    def protocol(self) -> dict[str, Any]:
        """Everything that its values depend on but models and number of images; as JSON."""

    @property
    def least(self) -> int:
        """Images below which its values say little."""

    def rows(self, model: Model, guide: Any, guidance: float) -> tuple[dict[str, Any], Make]:
        """What the rows depend on, and what makes them."""

    def reduce(self, parts: Parts, num: int, model: Model) -> Measured:
        """The figure."""


@dataclass(frozen=True)
class GeneratedFeatures:
    """Features of generated images, seed ``first_seed + i`` for image i and classes in turn.

    Attributes:
        extractor: Of the features.
        sampling: Without the weight of guidance.
        batch, device: As :class:`ImageGenerator` takes them.
        first_seed: Other seeds repeat the experiment.
        image_check: Called with (name, shape) of the first images.
    """

    extractor: Extractor
    sampling: Sampling
    batch: int
    device: torch.device
    image_check: Callable[[str, Any], None]
    first_seed: int = 0

    def of(self, model: Model, guide: Any, guidance: float) -> tuple[dict[str, Any], Make]:
        sampling = dataclasses.replace(self.sampling, guidance=guidance)
        conditions = model.net.config.backbone.conditions

        def generator(images: range) -> ImageGenerator:
            seeds = [self.first_seed + i for i in images]
            told = values_of(conditions, "in_turn", seeds)
            return ImageGenerator(model, seeds, told, sampling, guide, self.batch, self.device)

        def make(wanted: range) -> tuple[Tensor, Tensor]:
            features, shown = [], []
            made = generator(wanted)
            for batch in made:
                images = batch.images
                self.image_check(model.name, images.shape[1:])
                # always one number of images: the rounding of features depends on it
                fill = images[-1:].expand(made.rows - len(images), -1, -1, -1)
                rows = self.extractor.features(torch.cat([images, fill]))[: len(images)]
                features.append(torch.from_numpy(rows).float())
                shown.append(images[:SHOWN])
            return torch.cat(features), torch.cat(shown)[:SHOWN]

        e = self.extractor
        key = {**generator(range(1)).settings, "extractor": e.name, "digest": e.weights_digest}
        key |= {"classes": _num_classes(model), "first_seed": self.first_seed}
        return key, make


@dataclass(frozen=True)
class Fidelity:
    """Fréchet distance to reference statistics.

    Attributes:
        reference: Compared with.
        features: Of the images.
        guide: What guides, for the record; "" for nothing.
    """

    reference: FeatureStats
    features: GeneratedFeatures
    guide: str = ""
    name: str = "fd"

    @property
    def protocol(self) -> dict[str, Any]:
        return {
            "extractor": self.reference.extractor,
            "reference": self.reference.digest,
            "guide": self.guide,
            "first_seed": self.features.first_seed,
            **self.features.sampling.changes(),
        }

    @property
    def least(self) -> int:
        return 2 * len(self.reference.mean)

    def rows(self, model: Model, guide: Any, guidance: float) -> tuple[dict[str, Any], Make]:
        return self.features.of(model, guide, guidance)

    def reduce(self, parts: Parts, num: int, model: Model) -> Measured:
        moments = moments_of(parts, num)
        stats = FeatureStats.of(moments[0], self.features.extractor, model.name)
        check_same_features(stats, self.reference)
        classes = _num_classes(model)
        spread = influences(parts, moments, self.reference.mean, self._root, classes)
        return Measured(frechet_distance(stats, self.reference), spread, {})

    @functools.cached_property
    def _root(self) -> Array:
        return square_root(self.reference.cov)


def _num_classes(model: Model) -> int:
    """Classes that come in turn, 0 without any."""
    conditions = model.net.config.backbone.conditions
    return sum(c.num_classes for c in conditions if isinstance(c, ClassLabel))


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean denoising loss over noise levels, on given images.

    Attributes:
        dataset: The images.
        levels: The noise levels.
        batch, device: How to compute.
    """

    dataset: ImageDataset
    levels: tuple[float, ...]
    batch: int
    device: torch.device
    name: str = "loss"

    @property
    def protocol(self) -> dict[str, Any]:
        return {"data": self.dataset.name, "levels": list(self.levels)}

    @property
    def least(self) -> int:
        return 64

    def rows(self, model: Model, guide: Any, guidance: float) -> tuple[dict[str, Any], Make]:
        check_dataset(model.name, model.net, model.encoder, self.dataset)
        key = {"weights": model.identity, "batch": self.batch, **self.protocol}
        net = model.net.prepared(device=self.device)
        return key, DenoisingRows(
            net, model.encoder, self.dataset, self.levels, self.device, self.batch
        )

    def reduce(self, parts: Parts, num: int, model: Model) -> Measured:
        rows = np.concatenate(list(parts()))
        each = rows.mean(axis=1)
        details = {f"{s:g}": float(v) for s, v in zip(self.levels, rows.mean(axis=0), strict=True)}
        return Measured(float(each.mean()), (each - each.mean())[None], details)
