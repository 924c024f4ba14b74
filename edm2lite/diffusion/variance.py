"""The variance that some networks predict beside the image, for DDPM's sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from edm2lite.diffusion.precond import Precond
from edm2lite.dtypes import torch_dtype
from edm2lite.network.conditioning import Conditioning


def predicts_variance(net: object) -> bool:
    """Whether a denoiser, compiled or not, has a network that predicts the variance.

    Example:
        >>> from edm2lite.diffusion.precond import PrecondConfig
        >>> from edm2lite.network.dit import DiTConfig
        >>> dit = DiTConfig(img_resolution=4, img_channels=1, width=16, num_heads=2, num_blocks=1)
        >>> predicts_variance(Precond(PrecondConfig(backbone=dit)))
        False
    """
    config = getattr(net, "config", None)
    return bool(getattr(getattr(config, "backbone", None), "predicts_variance", False))


class WithVariance:
    """A denoiser that returns what its network says about the variance, behind the channels of D_x.

    Args:
        net: The denoiser, whose network has a method ``with_variance``, as
            :class:`edm2lite.network.dit.DiT` has.

    Example:
        >>> from edm2lite.diffusion.precond import PrecondConfig
        >>> from edm2lite.network.dit import DiTConfig
        >>> dit = DiTConfig(img_resolution=4, img_channels=1, width=16, num_heads=2, num_blocks=1,
        ...                 predicts_variance=True)
        >>> net = WithVariance(Precond(PrecondConfig(backbone=dit)))
        >>> net(torch.randn(2, 1, 4, 4), torch.tensor(1.0), Conditioning()).shape
        torch.Size([2, 2, 4, 4])
    """

    def __init__(self, net: object):
        self.net = cast(Precond, net)

    def __call__(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """[N, C, H, W] at the level sigma -> [N, 2C, H, W] float32, see arXiv 2102.09672."""
        config, levels = self.net.config, sigma.float().expand(len(x))
        s = config.scalings(levels[:, None, None, None])
        backbone: Any = self.net.backbone
        network: Callable[..., Tensor] = backbone.with_variance
        dtype = torch_dtype(self.net.dtype_on(x.device))
        F = network((s.c_in * x.float()).to(dtype), s.c_noise.flatten(), conditioning).float()
        F_x, v = F.chunk(2, dim=1)
        return torch.cat([s.c_skip * x.float() + s.c_out * F_x, v], 1)
