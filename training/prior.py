"""DreamBooth: images of what a model knows already, beside the new ones that it is taught.

A batch alternates between the two: position g of the run shows the new image number g / 2 if g is
even, and an image of the prior if it is odd. The loss is the mean over both halves, that of the
prior times ``weight``. u(sigma) is frozen, which a few images would teach to weigh them less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .fields import Nimg

if TYPE_CHECKING:
    from .config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Images that a fine-tuned model is to keep, half of every batch.

    Attributes:
        source: Data set of them, in any form that ``data.source`` may have.
        generate: Number of images that the model makes itself before it is trained, in place of a
            data set. They go to ``prior.zip`` in the folder of the run, by their seeds.
        weight: Factor of their loss.
        classes: Their classes; generated images get them in turn. [default: all]
        prompts: Texts that generated images get in turn, for a model that is told text.
        seed: Seed of the first generated image; the others follow.
        steps: Number of steps of Heun's method for a generated image.

    Raises:
        ValueError: If not exactly one of ``source`` and ``generate`` is given, or a value is out of
            range.

    Example:
        >>> Prior(generate=200, classes=(0, 1)).label(seed=7, num_classes=10)
        1
    """

    source: str | None = None
    generate: Nimg | None = None
    weight: float = 1.0
    classes: tuple[int, ...] | None = None
    prompts: tuple[str, ...] = ()
    seed: int = 0
    steps: int = 32

    def __post_init__(self) -> None:
        if (self.source is None) == (self.generate is None):
            raise ValueError("prior must give either source or generate, got both or none of them")
        if self.generate is not None and self.generate < 1:
            raise ValueError(f"prior.generate must be at least 1, got {self.generate}")
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"prior.weight must be at least 0, got {self.weight}")
        if self.classes is not None and not self.classes:
            raise ValueError("prior.classes must hold at least one class, got none; leave it out")
        if self.prompts and self.generate is None:
            raise ValueError("prior.prompts are for prior.generate; captions of a source are read")
        if self.seed < 0 or self.steps < 1:
            raise ValueError("prior.seed must be at least 0, and prior.steps at least 1")

    @property
    def seeds(self) -> range:
        """Seeds of the generated images."""
        return range(self.seed, self.seed + (self.generate or 0))

    def label(self, seed: int, num_classes: int) -> int:
        """Class of the image of a seed.

        Args:
            seed: The seed.
            num_classes: Number of classes of the model.
        """
        classes = self.classes or range(num_classes)
        return classes[seed % len(classes)]


def weighted(loss: Tensor, prior: Prior | None, indices: NDArray[np.int64]) -> Tensor:
    """Losses of samples, those of the prior times its weight.

    Args:
        loss: [N] losses.
        prior: The prior, or None.
        indices: [N] positions of the samples in the run.

    Example:
        >>> weighted(torch.ones(2), Prior(generate=1, weight=0.5), np.array([4, 5]))
        tensor([1.0000, 0.5000])
    """
    if prior is None or prior.weight == 1:
        return loss
    factors = np.where(indices % 2 == 1, prior.weight, 1.0)
    return loss * torch.from_numpy(factors).to(loss)


def check_prior(config: RunConfig) -> None:
    """Raise ValueError if a configuration and its prior do not go together."""
    if config.prior is None:
        return
    if config.init is None:
        raise ValueError("init must be given with prior: the model to fine-tune, got none")
    if config.batch_size % 2:
        raise ValueError(
            f"batch_size must be even with prior, for half of every batch, got {config.batch_size}"
        )
    if config.data.buckets:
        raise ValueError("data.buckets must be false with prior, whose images have one size")
