"""Images for given seeds, in batches: an iterable with a length."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edm2lite.models import Model
from edm2lite.sampling import heun, karras_sigmas
from edm2lite.seeding import Purpose, normals, rng


@dataclass(frozen=True)
class GeneratedBatch:
    """Attributes:
    seeds: [N] of the images.
    labels: [N] class of each, or None.
    images: [N, C, H, W] uint8 on the CPU.
    """

    seeds: list[int]
    labels: list[int] | None
    images: Tensor


@dataclass(frozen=True)
class Generator:
    """Iterates over batches of generated images; ``len`` is the number of batches.

    The image of a seed starts from noise drawn from that seed alone. Its class is ``classes[i]``
    for the i-th seed if given, otherwise drawn from the seed.

    Attributes:
        model: Generates; its weights are prepared for sampling on first use.
        seeds: One per image, each at least 0.
        classes: One per seed, or None.
        num_steps: Of Heun's method; 2 * num_steps - 1 evaluations.
        batch_size: Images per batch.
        device: Where to compute.
        sigma_min, sigma_max, rho: Noise levels, see :func:`karras_sigmas`.
    """

    model: Model
    seeds: Sequence[int]
    classes: Sequence[int] | None = None
    num_steps: int = 32
    batch_size: int = 64
    device: torch.device = torch.device("cpu")
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        label_dim = self.model.net.config.unet.label_dim
        if self.classes is not None:
            if not label_dim:
                raise ValueError(f"{self.model.name} has no classes, leave them out")
            bad = [c for c in self.classes if not 0 <= c < label_dim]
            if bad:
                raise ValueError(
                    f"classes of {self.model.name} are 0 to {label_dim - 1}, got {bad[0]}"
                )

    def __len__(self) -> int:
        return math.ceil(len(self.seeds) / self.batch_size)

    def __iter__(self) -> Iterator[GeneratedBatch]:
        net = self.model.net.to(self.device).prepare_for_sampling()
        unet = net.config.unet
        shape = (unet.img_channels, unet.img_resolution, unet.img_resolution)
        sigmas = karras_sigmas(self.num_steps, self.sigma_min, self.sigma_max, self.rho)
        for begin in range(0, len(self.seeds), self.batch_size):
            seeds = list(self.seeds[begin : begin + self.batch_size])
            generators = [rng(seed, 0, Purpose.GENERATION) for seed in seeds]
            x = normals(generators, shape).to(self.device) * sigmas[0].float()
            classes = None
            if self.classes is not None:
                classes = list(self.classes[begin : begin + self.batch_size])
            elif unet.label_dim:
                classes = [int(g.integers(unet.label_dim)) for g in generators]
            labels = None if classes is None else torch.tensor(classes, device=self.device)

            def denoise(x: Tensor, sigma: Tensor, labels: Tensor | None = labels) -> Tensor:
                return net(x, sigma, labels)

            x = heun(denoise, x, sigmas.float().to(self.device))
            yield GeneratedBatch(seeds, classes, self.model.encoder.decode(x).cpu())
