"""Images that a network is told for each seed: files of a person, normalized as in training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from edm2lite.dataset import ImageDataset
from edm2lite.dataset.conditions import Normalization
from edm2lite.models.control_names import normalization_of
from edm2lite.models.loading import Model
from edm2lite.network.conditions import ConditionImage, described


def control_values(
    model: Model, sources: Sequence[ImageDataset], seeds: Sequence[int]
) -> dict[str, Tensor]:
    """What the network is told of images, by the names of its conditions, a row per seed.

    Args:
        model: The model that will generate.
        sources: Images for each condition image that the network takes, in their order. Seed s is
            told image s mod M of M.
        seeds: Seeds of the images.

    Raises:
        ValueError: If the network takes another number of condition images, they have other
            channels, or the model does not say how they were normalized.

    Example:
        >>> from edm2lite.diffusion.precond import Precond, PrecondConfig
        >>> from edm2lite.models import Model, PixelEncoder
        >>> from edm2lite.network.unet import UNetConfig
        >>> unet = UNetConfig(img_resolution=8, img_channels=1, cond_channels=1, model_channels=8,
        ...                   channel_mult=(1,), num_blocks=1, attn_resolutions=(), head_channels=8)
        >>> stated = {"condition_normalization": '{"image": {"mean": 100, "std": 50}}'}
        >>> model = Model("tiny", Precond(PrecondConfig(backbone=unet)), PixelEncoder(), stated)
        >>> gray = np.full((1, 8, 8), 150, np.uint8)
        >>> told = control_values(model, [ImageDataset("g", 1, (1, 8, 8), lambda i: gray)], [0, 1])
        >>> told["image"].shape, told["image"].unique()
        (torch.Size([2, 1, 8, 8]), tensor([1.]))
    """
    conditions = model.net.config.backbone.conditions
    taken = [c for c in conditions if isinstance(c, ConditionImage)]
    if len(taken) != len(sources):
        raise ValueError(
            f"control images must be given for each condition image that {model.name} takes"
            f" ({described(taken)}), got {len(sources)}"
        )
    stated = normalization_of(model.metadata)
    found = {}
    for condition, source in zip(taken, sources, strict=True):
        if condition.name not in stated:
            raise ValueError(
                f"{model.name} must say how its condition image {condition.name} was normalized to"
                " take files, it was trained by an earlier version; give its data set by"
                " --conditions"
            )
        normalize = Normalization(**stated[condition.name])
        found[condition.name] = _rows(condition, source, seeds, normalize)
    return found


def _rows(
    condition: ConditionImage,
    source: ImageDataset,
    seeds: Sequence[int],
    normalize: Normalization,
) -> Tensor:
    pixels = source.images([seed % len(source) for seed in seeds])
    if pixels.dtype != np.uint8 or pixels.shape[1] != condition.channels:
        raise ValueError(
            f"control images must have {condition.channels} channel(s) for {condition.name},"
            f" {source.title(0)} of {source.name} has {pixels.shape[1]}; save it in"
            f" {'gray' if condition.channels == 1 else 'RGB'}"
        )
    return torch.from_numpy(normalize(pixels))
