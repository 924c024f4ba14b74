"""What a denoiser is trained to do: at which noise levels, and with which weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edm2lite.precond import Precond


@dataclass(frozen=True, kw_only=True)
class LogNormal:
    """Noise levels ``ln sigma ~ N(P_mean, P_std**2)``."""

    P_mean: float = -0.4
    P_std: float = 1.0

    def __post_init__(self) -> None:
        if not self.P_std > 0:
            raise ValueError(f"P_std must be positive, got {self.P_std}")

    def sigma(self, z: Tensor) -> Tensor:
        """Noise levels of standard normal values, same shape."""
        return torch.exp(z * self.P_std + self.P_mean)


class DenoisingLoss(nn.Module):
    """Uncertainty-weighted denoising loss of EDM2 (Eqs. 14 to 16 and 21).

    ``loss = sum of lambda(sigma) / e**u * (D_x - y)**2 + u`` over elements, with
    ``lambda = (sigma**2 + sigma_data**2) / (sigma sigma_data)**2`` and u = logvar(sigma); at its
    minimum over u every noise level contributes equally.
    """

    def __init__(self, net: Precond):
        super().__init__()
        self.net = net

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None,
        sigma: Tensor,
        noise: Tensor,
        cond: Tensor | None = None,
    ) -> Tensor:
        """Loss of each sample, summed over its elements.

        Args:
            images: [N, C, H, W] clean, of standard deviation sigma_data.
            labels: As :meth:`Precond.forward` takes them.
            sigma: [N] noise levels.
            noise: [N, C, H, W] standard normal.
            cond: As :meth:`Precond.forward` takes it.

        Returns:
            [N] float32.
        """
        sigma_data = self.net.config.sigma_data
        level = sigma[:, None, None, None]
        D_x = self.net(images + level * noise, sigma, labels, cond)
        u = self.net.logvar(sigma)
        weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
        square = (D_x - images).square().sum(dim=(1, 2, 3))
        return weight / u.exp() * square + images[0].numel() * u
