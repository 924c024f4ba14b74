"""Magnitudes within a denoiser that sees noised images, as it does in training."""

from __future__ import annotations

from statistics import NormalDist

import torch
from torch import Tensor, nn

from edm2lite.diffusion.objective import noised
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.magnitudes import Magnitude, Meter


def measure_denoiser(
    denoise: nn.Module,
    images: Tensor,
    conditioning: Conditioning | None = None,
    *,
    P_mean: float = -0.4,
    P_std: float = 1.0,
    batch_size: int = 64,
) -> list[Magnitude]:
    """Magnitudes within a denoiser ``(x, sigma, conditioning)`` for noised images.

    Noise levels are the quantiles of ``ln sigma ~ N(P_mean, P_std**2)`` in random order. Everything
    random is drawn from a fixed seed.

    Args:
        denoise: The denoiser, such as a :class:`edm2lite.diffusion.precond.Precond`.
        images: [N, C, H, W] of standard deviation sigma_data, on the device of the network.
        conditioning: What the network is told about each image.
        P_mean: Mean of the logarithms of the noise levels.
        P_std: Standard deviation of the logarithms of the noise levels.
        batch_size: Number of images per call of the network.

    Returns:
        One entry for every layer and block, see :class:`edm2lite.network.magnitudes.Meter`.

    Example:
        >>> from edm2lite.diffusion.precond import Precond, PrecondConfig
        >>> from edm2lite.network.unet import UNetConfig
        >>> unet = UNetConfig(img_resolution=8, img_channels=1, model_channels=16,
        ...                   channel_mult=(1,), num_blocks=1, attn_resolutions=(),
        ...                   head_channels=16)
        >>> net = Precond(PrecondConfig(backbone=unet))
        >>> layers = measure_denoiser(net, torch.randn(8, 1, 8, 8) * 0.5)
        >>> [m.name for m in layers if m.is_block][:2]
        ['unet.enc.8x8_block0', 'unet.dec.8x8_in0']
    """
    generator = torch.Generator().manual_seed(0)
    normal = NormalDist(P_mean, P_std)
    levels = torch.tensor([normal.inv_cdf((i + 0.5) / len(images)) for i in range(len(images))])
    sigma = levels.exp()[torch.randperm(len(images), generator=generator)].to(images.device)
    x = noised(images, sigma, torch.randn(images.shape, generator=generator).to(images.device))
    told = conditioning or Conditioning()
    with Meter(denoise) as meter, torch.no_grad():
        for begin in range(0, len(images), batch_size):
            part = slice(begin, begin + batch_size)
            denoise(x[part], sigma[part], told.rows(part))
    return meter.magnitudes()
