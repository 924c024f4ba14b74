"""Denoising loss of a model on given images, by noise level: cheaper than generating any."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edm2lite.dataset import ImageDataset
from edm2lite.models.encoders import LatentEncoder
from edm2lite.models.loading import Model
from edm2lite.seeding import Purpose, normals, rng

LEVELS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Noise levels, in units of the data at sigma_data 0.5."""


@dataclass(frozen=True)
class DenoisingRows:
    """``lambda(sigma) |D_x - y|**2`` per element of images of a data set, a column per noise level.

    With lambda = (sigma**2 + sigma_data**2) / (sigma sigma_data)**2 a network that knows nothing
    has 1 at every level. Image i has the same noise under every model.

    Attributes:
        model: In evaluation mode, on ``device``.
        dataset: Images that it should not have been trained on.
        levels: Noise levels.
        device: Where to compute.
        batch: Images at a time.
    """

    model: Model
    dataset: ImageDataset
    levels: tuple[float, ...]
    device: torch.device
    batch: int = 64

    @torch.no_grad()
    def __call__(self, images: range) -> tuple[Tensor, None]:
        """[n, levels] float32."""
        net = self.model.net.to(self.device).prepare_for_sampling()
        parts = [images[i : i + self.batch] for i in range(0, len(images), self.batch)]
        return torch.cat([self._rows(net, part) for part in parts]), None

    def _rows(self, net: torch.nn.Module, images: range) -> Tensor:
        indices = list(images)
        filled = indices + indices[-1:] * (self.batch - len(indices))  # one shape, one rounding
        generators = [rng(i, 0, Purpose.EVALUATION) for i in filled]
        shape = self.dataset.image_shape
        raw = torch.from_numpy(self.dataset.images(filled)).to(self.device)
        encoder = self.model.encoder
        if isinstance(encoder, LatentEncoder):
            clean = encoder.encode(raw, normals(generators, shape).to(self.device))
        else:
            clean = encoder.encode(raw)
        names = self.model.net.config.backbone.condition_names
        told = self.dataset.conditioning(filled).only(names).to(self.device)
        sigma_data = self.model.net.config.sigma_data
        columns = []
        for sigma in self.levels:
            noise = normals(generators, shape).to(self.device)
            error = net(clean + sigma * noise, torch.tensor(sigma, device=self.device), told)
            weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
            columns.append(weight * (error.float() - clean).square().mean(dim=(1, 2, 3)))
        return torch.stack(columns, dim=1)[: len(indices)].cpu()


def check_dataset(model: Model, dataset: ImageDataset) -> None:
    """Refuse images that are not what ``model`` was made for.

    Raises:
        ValueError: They are of another shape, kind or number of classes.
    """
    own = model.net.config.backbone
    shape = (own.img_channels, own.img_resolution, own.img_resolution)
    latents = isinstance(model.encoder, LatentEncoder)
    if dataset.sizes is not None or tuple(dataset.image_shape) != shape:
        raise ValueError(
            f"--data must hold images of {list(shape)} for {model.name}, {dataset.name} has"
            f" {list(dataset.image_shape)}"
        )
    if latents != (dataset.encoder is not None):
        kind = "latents" if latents else "pixels"
        raise ValueError(f"--data must hold {kind} for {model.name}, {dataset.name} does not")
    missing = set(own.conditions) - set(dataset.conditions)
    if missing:
        has = ", ".join(c.describe() for c in dataset.conditions) or "no condition"
        raise ValueError(
            f"--data must have {min(c.describe() for c in missing)} for {model.name},"
            f" {dataset.name} has {has}"
        )
