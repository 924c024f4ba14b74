"""Denoising loss of a network on held-out images, by noise level: cheaper than generating any."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from edm2lite.dataset import ImageDataset
from edm2lite.diffusion.precond import Precond
from edm2lite.diffusion.weighting import edm_weight
from edm2lite.metrics.metric import ImageRows, Measurement, Metric, Needs
from edm2lite.metrics.rows import RowFactory
from edm2lite.models.encoders import Encoder
from edm2lite.models.loading import Model
from edm2lite.network.conditions import described, missing
from edm2lite.seeding import Purpose, normals, rng

if TYPE_CHECKING:
    from edm2lite.metrics.image_source import Generation
    from edm2lite.metrics.inputs import MetricInputs

LEVELS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Noise levels, in units of the data at sigma_data 0.5."""


@dataclass(frozen=True)
class DenoisingRows:
    """``lambda(sigma) |D_x - y|**2`` per element: a row per image, a column per noise level.

    With the weighting of EDM, ``lambda = (sigma**2 + sigma_data**2) / (sigma sigma_data)**2``, a
    network that knows nothing has a loss of 1 at every level. Image i is given the same noise under
    every network. The network may be one in the middle of its training: it computes in evaluation
    mode without gradients, and every module returns to the mode that it was in.

    Attributes:
        net: The denoiser.
        encoder: Encoder between what the data set stores and what the network sees.
        dataset: Images that the network should not have been trained on.
        levels: Noise levels, each above 0 and finite.
        device: Device of the network. [default: that of its parameters]
        batch: Number of images in each call of the network; a smaller last batch is filled up, so
            that rounding does not depend on how many images are asked for.

    Example:
        >>> import numpy as np
        >>> from edm2lite.diffusion.precond import PrecondConfig
        >>> from edm2lite.models.encoders import PixelEncoder
        >>> from edm2lite.network.unet import UNetConfig
        >>> unet = UNetConfig(img_resolution=8, img_channels=1, model_channels=16, head_channels=16,
        ...                   channel_mult=(1,), num_blocks=1, attn_resolutions=())
        >>> images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), np.uint8)
        >>> dataset = ImageDataset("noise", 5, (1, 8, 8), images.__getitem__)
        >>> rows = DenoisingRows(Precond(PrecondConfig(backbone=unet)), PixelEncoder(), dataset,
        ...                      levels=(0.1, 1.0), batch=4)
        >>> losses, _ = rows(range(5))
        >>> losses.shape
        torch.Size([5, 2])
    """

    net: Precond
    encoder: Encoder
    dataset: ImageDataset
    levels: tuple[float, ...] = LEVELS
    device: torch.device | None = None
    batch: int = 64

    @torch.no_grad()
    def __call__(self, images: range) -> tuple[Tensor, None]:
        """[n, levels] float32 on the CPU, of these indices of the data set; no images to show."""
        parts = [images[i : i + self.batch] for i in range(0, len(images), self.batch)]
        with evaluating(self.net):
            return torch.cat([self._rows(part) for part in parts]), None

    def _rows(self, images: range) -> Tensor:
        indices = list(images)
        filled = indices + indices[-1:] * (self.batch - len(indices))
        generators = [rng(i, 0, Purpose.EVALUATION) for i in filled]
        shape, config = self.encoder.shape(self.dataset.image_shape), self.net.config
        device = self.device or next(self.net.parameters()).device

        def noise() -> Tensor:
            return normals(generators, shape).to(device)

        raw = torch.from_numpy(self.dataset.images(filled)).to(device)
        clean = self.encoder.encode(raw, noise() if self.encoder.is_random else None)
        told = self.dataset.conditioning(filled).only(config.backbone.condition_names).to(device)
        columns = []
        for sigma in self.levels:
            D_x = self.net(clean + sigma * noise(), torch.tensor(sigma, device=device), told)
            square = (D_x.float() - clean).square().mean(dim=(1, 2, 3))
            columns.append(_weight(sigma, config.sigma_data) * square)
        return torch.stack(columns, dim=1)[: len(indices)].cpu()


def _weight(sigma: float, sigma_data: float) -> float:
    """lambda(sigma) of EDM, in float64."""
    level = torch.tensor(sigma, dtype=torch.float64)
    return edm_weight(level, sigma_data).item()


@contextlib.contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, then each of its modules back into its own mode.

    Example:
        >>> net = nn.Dropout()
        >>> with evaluating(net):
        ...     net.training
        False
        >>> net.training
        True
    """
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def check_dataset(name: str, net: Precond, encoder: Encoder, dataset: ImageDataset) -> None:
    """Refuse held-out images that are not what a network was made for.

    Args:
        name: Name of the network in the message.
        net: The denoiser.
        encoder: Encoder of the network.
        dataset: The held-out images.

    Raises:
        ValueError: If the images have another shape or kind, or lack a condition that the network
            takes.
    """
    own = net.config.backbone
    shape = (own.img_channels, own.img_resolution, own.img_resolution)
    if dataset.sizes is not None or encoder.shape(dataset.image_shape) != shape:
        raise ValueError(
            f"held-out data must be images of {list(shape)} for {name}, {dataset.name} has"
            f" {list(dataset.image_shape)}"
        )
    needed = "latents" if encoder.is_random else "pixels"
    stored = "pixels" if dataset.encoder is None else "latents"
    if needed != stored:
        raise ValueError(
            f"held-out data must be {needed} for {name}, {dataset.name} holds {stored}"
        )
    lacking = missing(own.conditions, dataset.conditions)
    if lacking:
        raise ValueError(
            f"held-out data must have {described(lacking)} for {name}, {dataset.name} has"
            f" {described(dataset.conditions)}"
        )


class HeldOutLoss(Metric):
    """The mean denoising loss over noise levels, on images that the network was not trained on.

    Args:
        dataset: The held-out images.
        levels: The noise levels.
        batch: Number of images in each call of the network.
        device: Device that computes.

    Example:
        >>> metric = HeldOutLoss(ImageDataset("none", 2, (1, 8, 8), lambda index: None), (0.1, 1.0))
        >>> metric.measure(ImageRows.of(np.array([[1.0, 0.5], [3.0, 1.5]]))).details
        {'0.1': 2.0, '1': 1.0}
    """

    name: ClassVar[str] = "loss"
    label: ClassVar[str] = "loss"
    axis_label: ClassVar[str] = "held-out denoising loss"
    needs: ClassVar[Needs] = "held-out images"

    def __init__(
        self,
        dataset: ImageDataset,
        levels: tuple[float, ...] = LEVELS,
        batch: int = 64,
        device: torch.device | str = "cpu",
    ):
        self.dataset, self.levels, self.batch = dataset, levels, batch
        self.device = torch.device(device)

    @classmethod
    def create(cls, inputs: MetricInputs) -> list[Metric]:
        """See :meth:`edm2lite.metrics.Metric.create`."""
        if inputs.data is None:
            raise ValueError(
                f"{cls.name} needs images that the model was not trained on, got none; give --data"
            )
        return [cls(inputs.data, batch=inputs.batch_size, device=inputs.device)]

    def rows_of(self, model: Model, generation: Generation) -> tuple[dict[str, Any], RowFactory]:
        """See :meth:`edm2lite.metrics.Metric.rows_of`; nothing is generated."""
        check_dataset(model.name, model.net, model.encoder, self.dataset)
        net = model.net.prepared(device=self.device)
        key = {"weights": model.identity, "batch": self.batch, **self.protocol}
        return key, DenoisingRows(
            net, model.encoder, self.dataset, self.levels, self.device, self.batch
        )

    @property
    def protocol(self) -> dict[str, Any]:
        """See :attr:`edm2lite.metrics.Metric.protocol`."""
        return {"data": self.dataset.name, "levels": list(self.levels)}

    @property
    def minimum_images(self) -> int:
        """A network's loss differs little from that of its neighbors on the same images."""
        return 64

    def num_images(self, num: int | None) -> int:
        """See :meth:`edm2lite.metrics.Metric.num_images`; all of the data set by default."""
        if num is not None and num > len(self.dataset):
            raise ValueError(
                f"{self.name} can be measured on at most {len(self.dataset)} images of"
                f" {self.dataset.name}, got {num}; give a smaller --num"
            )
        return len(self.dataset) if num is None else num

    def measure(self, rows: ImageRows) -> Measurement:
        """See :meth:`edm2lite.metrics.Metric.measure`; the details are the loss at each level."""
        losses = np.concatenate(list(rows.parts()))
        each, levels = losses.mean(axis=1), losses.mean(axis=0)
        details = {f"{s:g}": float(v) for s, v in zip(self.levels, levels, strict=True)}
        return Measurement(float(each.mean()), (each - each.mean())[None], details)
