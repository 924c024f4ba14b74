"""What a denoiser is trained to do: predict what, at which noise levels, with which weight.

An objective has three parts: the parametrization of the network
(:mod:`edm2lite.diffusion.parametrization`), the density of noise levels
(:mod:`edm2lite.diffusion.noise_density`) and the weighting (:mod:`edm2lite.diffusion.weighting`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edm2lite.diffusion.noise_density import NoiseDensity
from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.diffusion.weighting import Weighting, weight_on
from edm2lite.network.conditioning import Conditioning


class LossTerms(NamedTuple):
    """Result of the loss for each sample of a batch.

    Attributes:
        loss: [N] float32, summed over the elements of each sample; training minimizes its mean.
        u: [N] float32, the uncertainty that the network states, without gradient; 0 under a fixed
            weighting.

    Example:
        >>> terms = LossTerms(loss=torch.ones(2), u=torch.zeros(2))
        >>> terms.loss.mean()
        tensor(1.)
    """

    loss: Tensor
    u: Tensor


class DenoisingLoss(nn.Module):
    """Weighted denoising loss; by default with the learned uncertainty of EDM2.

    ``loss = sum of lambda(sigma) / e**u * (D_x - y)**2 + u`` over elements, with u = logvar(sigma);
    at its minimum over u every noise level contributes equally (Eqs. 14 to 16 and 21). A fixed
    weighting has no u; the uncertainty head of the network is then frozen, as it gets no gradient.

    Args:
        net: The denoiser.
        weighting: Weighting of noise levels. [default: the learned uncertainty]

    Example:
        >>> from edm2lite.network.unet import UNetConfig
        >>> unet = UNetConfig(img_resolution=8, img_channels=1, model_channels=16, num_blocks=1,
        ...                   channel_mult=(1,), attn_resolutions=(), head_channels=16)
        >>> loss = DenoisingLoss(Precond(PrecondConfig(backbone=unet)), Weighting(kind="edm"))
        >>> images, noise = torch.randn(2, 256, 1, 8, 8)
        >>> terms = loss(images * 0.5, None, torch.full((256,), 0.3), noise)
        >>> f"{terms.loss.mean() / 64:.1f}"  # an untrained network: 1 per element
        '1.0'
    """

    def __init__(self, net: Precond, weighting: Weighting | None = None):
        super().__init__()
        self.net = net
        self.weighting = weighting or Weighting()
        if not self.weighting.is_learned:
            net.logvar_linear.requires_grad_(False)

    def forward(
        self,
        images: Tensor,
        conditioning: Conditioning | Mapping[str, Tensor] | Tensor | None,
        sigma: Tensor,
        noise: Tensor,
    ) -> LossTerms:
        """Loss of each sample, summed over its elements.

        Args:
            images: [N, C, H, W] clean, of standard deviation sigma_data.
            conditioning: What the network is told about the images, in any form that
                :meth:`edm2lite.diffusion.precond.Precond.forward` takes.
            sigma: [N] noise levels; at infinity the network sees the noise alone.
            noise: [N, C, H, W] standard normal.
        """
        D_x = self.net(noised(images, sigma, noise), sigma, conditioning)
        weight = self.weighting(sigma, self.net.config.sigma_data)
        square = (D_x - images).square().sum(dim=(1, 2, 3))
        if not self.weighting.is_learned:
            return LossTerms(weight * square, torch.zeros_like(square))
        u = self.net.logvar(sigma)
        return LossTerms(weight / u.exp() * square + images[0].numel() * u, u.detach())


def noised(images: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """``images + sigma noise``; where sigma is infinite, the noise itself.

    Args:
        images: [N, C, H, W] clean images.
        sigma: [N] noise levels.
        noise: [N, C, H, W] standard normal.

    Returns:
        [N, C, H, W], see Note [sigma = infinity] in :mod:`edm2lite.diffusion.parametrization`.

    Example:
        >>> ones = torch.ones(2, 1, 1, 1)
        >>> noised(ones, torch.tensor([2.0, torch.inf]), 3 * ones).flatten()
        tensor([7., 3.])
    """
    level = sigma[:, None, None, None]
    is_infinite = level.isinf()
    return torch.where(is_infinite, noise, images + torch.where(is_infinite, 0.0, level) * noise)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The three parts of an objective together, for plots and checks.

    Attributes:
        net: Configuration of the denoiser, with its parametrization.
        loss: Density of noise levels.
        weighting: Weighting of noise levels.

    Raises:
        ValueError: If the three cannot be combined, see :func:`check_objective`.

    Example:
        >>> from edm2lite.diffusion.noise_density import LogNormal
        >>> from edm2lite.network.unet import UNetConfig
        >>> net = PrecondConfig(backbone=UNetConfig(img_resolution=64, img_channels=4))
        >>> objective = Objective(net=net, loss=LogNormal(), weighting=Weighting())
        >>> objective.effective_weight(torch.tensor([-0.4]).double())  # 1 / sqrt(2 pi)
        tensor([0.3989], dtype=torch.float64)
    """

    net: PrecondConfig
    loss: NoiseDensity
    weighting: Weighting

    def __post_init__(self) -> None:
        check_objective(self.net, self.loss, self.weighting)

    def effective_weight(self, log_sigma: Tensor) -> Tensor:
        """Weight of ``(v - target)**2`` times density of ln sigma, float64.

        Whatever its parametrization, the loss of a network is the integral over ln sigma of this
        weight times the squared error of the velocity. A learned uncertainty is left out (u = 0):
        in the end it divides by the loss of each level, and the density alone decides.

        Args:
            log_sigma: Natural logarithms of noise levels, float64, any shape.
        """
        sigma, sigma_data = log_sigma.exp(), self.net.sigma_data
        weight = self.weighting(sigma, sigma_data)
        return weight_on("v", weight, sigma, sigma_data) * self.loss.pdf(log_sigma)

    def magnitudes(self, sigma: Tensor, data_std: float) -> tuple[Tensor, Tensor]:
        """RMS of the network's input and of its target at noise levels.

        Args:
            sigma: Noise levels, any shape.
            data_std: The standard deviation that the images have in fact; with sigma_data both
                results are 1.
        """
        c = self.net.scalings(sigma)
        target = torch.hypot((1 - c.c_skip) * data_std, c.c_skip * sigma) / c.c_out.abs()
        return c.c_in * (sigma**2 + data_std**2).sqrt(), target


def check_objective(net: PrecondConfig, density: NoiseDensity, weighting: Weighting) -> None:
    """Raise ValueError if the parts of an objective cannot be combined.

    Args:
        net: Configuration of the denoiser.
        density: Density of noise levels.
        weighting: Weighting of noise levels.

    Raises:
        ValueError: If the density reaches sigma = infinity, which the network cannot take or the
            weighting ignores.

    Example:
        >>> from edm2lite.diffusion.noise_density import LogNormal
        >>> from edm2lite.network.unet import UNetConfig
        >>> net = PrecondConfig(backbone=UNetConfig(img_resolution=64, img_channels=4))
        >>> check_objective(net, LogNormal(), Weighting())
    """
    if not density.mass_at_infinity:
        return
    reason = net.infinite_sigma_error()
    if reason is not None:
        raise ValueError(
            f"loss {density.kind} with zero terminal SNR trains at sigma = infinity, which this"
            f" network cannot take: {reason}"
        )
    if weighting.vanishes_at_infinity():
        raise ValueError(
            f"loss {density.kind} with zero terminal SNR trains at sigma = infinity, where the"
            f" weighting {weighting.kind} is 0, so that the first step of sampling would never be"
            " learned; use uncertainty, edm, x0 or flow"
        )
