"""Validation: denoising loss on held-out images while a run goes on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from edm2lite.dataset import ImageDataset, open_dataset
from edm2lite.dataset.text import told_by
from edm2lite.diffusion.precond import Precond
from edm2lite.metrics.held_out_loss import LEVELS, DenoisingRows, check_dataset

from . import distributed
from .fields import Nimg
from .hook import Hook

if TYPE_CHECKING:
    from .config import RunConfig
    from .trainer import Trainer


@dataclass(kw_only=True)
class Validation(Hook):
    """Loss on held-out images, of the raw weights and of every tracked average, by noise level.

    The loss is ``lambda(sigma) (D_x - y)**2`` per element with lambda of EDM
    (:class:`edm2lite.metrics.held_out_loss.DenoisingRows`): a network that knows nothing has a loss
    of 1 at every level. The noise of an image depends on its index alone, so values can be compared
    across averages, times, runs and numbers of processes. Reported are, for each of ``raw`` and
    ``sigma_rel=...``, the mean over levels as ``validation`` and the mean at every level as
    ``validation_at``.

    Attributes:
        data: Held-out images, in any form that ``data.source`` may have.
        images: Number of images, from the first on; all there are if there are fewer.
        levels: Noise levels, in units in which the data have standard deviation sigma_data.
        name: What the names of the reported values begin with.
    """

    kind: Literal["validation"] = "validation"
    data: str
    images: Nimg = field(default=1024, metadata={"minimum": 1})
    levels: tuple[float, ...] = LEVELS
    name: str = "validation"

    def __post_init__(self) -> None:
        if not self.levels or not all(0 < sigma < math.inf for sigma in self.levels):
            raise ValueError(f"levels must be positive and finite, got {list(self.levels)}")

    def check(self, config: RunConfig, dataset: ImageDataset) -> None:
        """Raise ValueError unless the network takes the held-out images."""
        if self.every:
            with torch.device("meta"):
                net = Precond(config.net)
            check_dataset("this run", net, config.encoder, self._dataset(config))

    def start(self, trainer: Trainer) -> None:
        """Open the held-out images."""
        if self.every:
            self._rows = DenoisingRows(
                trainer.net,
                trainer.config.encoder,
                self._dataset(trainer.config),
                self.levels,
                device=trainer.device,
                batch=trainer.config.microbatch,
            )

    def run(self, trainer: Trainer) -> None:
        """Measure raw weights and averages; every rank takes its part of the images."""
        levels = [f"sigma {sigma:g}" for sigma in self.levels]
        means, at_levels = {}, {}
        for name, weights in _weights(trainer):
            measured = self._measure(weights)
            means[name] = measured.mean().item()
            at_levels[name] = dict(zip(levels, measured.tolist(), strict=True))
        trainer.report(self.name, means)
        trainer.report(f"{self.name}_at", at_levels)

    def _dataset(self, config: RunConfig) -> ImageDataset:
        return told_by(open_dataset(self.data), config.text)

    def _measure(self, weights: AbstractContextManager[None]) -> Tensor:
        """[levels] float64 mean loss, the same on every rank whatever their number.

        Ranks share whole batches, and add sums of batches in one order. All call the network
        equally often, as a sharded one needs: those that run out repeat the last batch.
        """
        count, size = min(self.images, len(self._rows.dataset)), self._rows.batch
        batches = [range(i, min(i + size, count)) for i in range(0, count, size)]
        sums = torch.zeros(len(batches), len(self.levels), dtype=torch.float64)
        rank, world_size = distributed.rank(), distributed.world_size()
        with weights:
            for first in range(0, len(batches), world_size):
                index = first + rank
                rows, _ = self._rows(batches[min(index, len(batches) - 1)])
                if index < len(batches):
                    sums[index] = rows.double().sum(0)
        return distributed.sum_(sums.to(self._rows.device)).sum(0).cpu() / count


def _weights(trainer: Trainer) -> Iterator[tuple[str, AbstractContextManager[None]]]:
    """Every set of weights by name, with a block in which the network has them."""
    yield "raw", nullcontext()
    for sigma_rel in trainer.ema.sigma_rels:
        yield f"sigma_rel={sigma_rel}", trainer.ema.applied(sigma_rel)
