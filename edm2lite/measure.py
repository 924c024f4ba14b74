"""Measuring the models of a sweep: rebuild in one pass, generate, extract, compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edm2lite.ema.reconstruction import build
from edm2lite.ema.targets import Reconstruction
from edm2lite.fidelity import Extractor, FeatureStats, feature_stats, frechet_distance
from edm2lite.generate import Generator
from edm2lite.models import Model, from_reconstruction, load
from edm2lite.settings import Sampling
from edm2lite.sweep import Point

_HELD_BYTES = 4 * 2**30
"""Rebuilt models are held in memory up to this size; more lengths take another pass."""


@dataclass(frozen=True)
class Measurer:
    """Fréchet distance of models under one protocol.

    Attributes:
        reference: Compared with.
        extractor: Of the features.
        num: Images per model, seeds 0 to num - 1, classes in turn.
        num_steps, batch, device: Of the generation.
    """

    reference: FeatureStats
    extractor: Extractor
    num: int
    num_steps: int
    batch: int
    device: torch.device

    def points(
        self,
        run: Path,
        plans: Sequence[Reconstruction],
        todo: Sequence[float | None],
        bar: Any,
    ) -> Iterator[Point]:
        """The points of ``todo`` (None: raw weights, where the run has ended at that time)."""
        if None in todo:
            raw = load(run)
            if int(raw.metadata["nimg"]) == plans[0].nimg:
                yield Point(None, None, plans[0].nimg, 0.0, self.distance(raw, bar), self.num)
        wanted = [plan for plan in plans if plan.sigma_rel in todo]
        size = sum(spec.numel * 4 for spec in plans[0].inputs[0].header.tensors.values())
        held = max(1, _HELD_BYTES // size)
        for begin in range(0, len(wanted), held):
            for built in build(wanted[begin : begin + held]):
                distance = self.distance(
                    from_reconstruction(built, f"{run}@{built.sigma_rel}"), bar
                )
                yield Point(
                    built.sigma_rel,
                    built.gamma,
                    built.nimg,
                    built.predicted_error,
                    distance,
                    self.num,
                )

    def distance(self, model: Model, bar: Any) -> float:
        """Fréchet distance of ``model``'s images to the reference."""
        label_dim = model.net.config.unet.label_dim
        generator = Generator(
            model,
            range(self.num),
            [seed % label_dim for seed in range(self.num)] if label_dim else None,
            sampling=Sampling(num_steps=self.num_steps),
            batch_size=self.batch,
            device=self.device,
        )

        def images() -> Iterator[Tensor]:
            for batch in generator:
                yield batch.images.to(self.device)
                bar.update(len(batch.seeds))

        return frechet_distance(feature_stats(images(), self.extractor, model.name), self.reference)
