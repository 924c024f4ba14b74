"""What a denoiser is trained to do: predict what, at which noise levels, with which weight.

An objective is a parametrization (:mod:`edm2lite.diffusion.parametrization`, part of the network),
a density of noise levels (:mod:`edm2lite.diffusion.noise_density`) and a weighting
(:mod:`edm2lite.diffusion.weighting`).
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
    """What one forward pass of the loss gives for each sample.

    Attributes:
        loss: [N] float32, summed over the elements of each sample; its mean is minimized.
        u: [N] float32, the uncertainty that the network states, without gradient; 0 where the
            weighting is fixed.
    """

    loss: Tensor
    u: Tensor


class DenoisingLoss(nn.Module):
    """Weighted denoising loss; by default with the learned uncertainty of EDM2.

    ``loss = sum of lambda(sigma) / e**u * (D_x - y)**2 + u`` over elements, with u = logvar(sigma);
    at its minimum over u every noise level contributes equally (Eqs. 14 to 16 and 21). A fixed
    weighting has no u, and the network's uncertainty head is frozen: it would get no gradient.

    Args:
        net: The denoiser.
        weighting: Weight lambda of noise levels. [default: the learned uncertainty]
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
            conditioning: What the network is told, as :meth:`Precond.forward` takes it.
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
    """``images + sigma noise``, the noise itself where sigma [N] is infinite; [N, C, H, W]."""
    level = sigma[:, None, None, None]
    is_infinite = level.isinf()
    return torch.where(is_infinite, noise, images + torch.where(is_infinite, 0.0, level) * noise)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a run trains for, to look at.

    Attributes:
        net, loss, weighting: Those of the configuration of a run.

    Raises:
        ValueError: They cannot go together.
    """

    net: PrecondConfig
    loss: NoiseDensity
    weighting: Weighting

    def __post_init__(self) -> None:
        check_objective(self.net, self.loss, self.weighting)

    def effective_weight(self, log_sigma: Tensor) -> Tensor:
        """Weight of ``(v - target)**2`` times density of ln sigma, float64.

        However the network is parametrised, its loss is an integral over ln sigma of this times
        the squared error of the velocity. A learned uncertainty is left out (u = 0): in the end it
        divides by the loss of each level, and the density alone decides.
        """
        sigma, sigma_data = log_sigma.exp(), self.net.sigma_data
        weight = self.weighting(sigma, sigma_data)
        return weight_on("v", weight, sigma, sigma_data) * self.loss.pdf(log_sigma)

    def magnitudes(self, sigma: Tensor, data_std: float) -> tuple[Tensor, Tensor]:
        """RMS of the network's input and target where images really have ``data_std``."""
        c = self.net.scalings(sigma)
        target = torch.hypot((1 - c.c_skip) * data_std, c.c_skip * sigma) / c.c_out.abs()
        return c.c_in * (sigma**2 + data_std**2).sqrt(), target


def check_objective(net: PrecondConfig, density: NoiseDensity, weighting: Weighting) -> None:
    """Raise ValueError, with the reason, if the three cannot go together."""
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
            f" weighting {weighting.kind} is 0: nothing would be learned of the first step; use"
            " uncertainty, edm, x0 or flow"
        )
