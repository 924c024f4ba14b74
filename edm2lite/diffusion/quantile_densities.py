"""Densities of noise levels that are defined by their quantiles: sigma as a function of u.

u is uniform in (0, 1): u = Phi(z) of the standard normal value z of a sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from edm2lite.diffusion.noise_density import NoiseDensity, check_positive, normal_cdf


@dataclass(frozen=True, kw_only=True)
class Cosine(NoiseDensity):
    """``sigma = tan(pi u / 2)``: ``p = 1 / (pi cosh(ln sigma))``.

    The cosine schedule (arXiv 2102.09672) in continuous time, and CosMap (2403.03206).

    Example:
        >>> Cosine().sigma(torch.zeros(1))
        tensor([1.])
    """

    kind: Literal["cosine"] = "cosine"

    def _sigma(self, z: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * normal_cdf(z)) / torch.sin(math.pi / 2 * normal_cdf(-z))

    def _pdf(self, log_sigma: Tensor) -> Tensor:
        return 1 / (math.pi * torch.cosh(log_sigma))


@dataclass(frozen=True, kw_only=True)
class VP(NoiseDensity):
    """``sigma**2 = exp(beta_d u**2 / 2 + beta_min u) - 1`` (arXiv 2011.13456), u uniform.

    Attributes:
        beta_min: Slope of the exponent at u = 0.
        beta_d: Growth of that slope.

    Example:
        >>> VP().sigma(torch.zeros(1))
        tensor([3.4129])
    """

    kind: Literal["vp"] = "vp"
    beta_min: float = 0.1
    beta_d: float = 19.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "beta_min")
        check_positive(self, "beta_d")

    def _sigma(self, z: Tensor) -> Tensor:
        u = normal_cdf(z)
        return torch.expm1(self.beta_d / 2 * u**2 + self.beta_min * u).sqrt()

    def _pdf(self, log_sigma: Tensor) -> Tensor:
        # du / d ln sigma, with sigma**2 / (1 + sigma**2) as a sigmoid: nothing overflows
        log_snr = torch.nn.functional.softplus(2 * log_sigma)  # ln(1 + sigma**2)
        slope = (self.beta_min**2 + 2 * self.beta_d * log_snr).sqrt()
        inside = log_snr <= self.beta_d / 2 + self.beta_min
        return inside * 2 * torch.sigmoid(2 * log_sigma) / slope


@dataclass(frozen=True, kw_only=True)
class Mode(NoiseDensity):
    """``t = 1 - u - s (cos(pi u / 2)**2 - 1 + u)``, ``t = sigma / (1 + sigma)`` (arXiv 2403.03206).

    Attributes:
        s: Preference of the middle (s > 0) or the ends (s < 0); 0 is uniform in t.

    Example:
        >>> Mode(s=0.0).sigma(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([0.1886, 1.0000, 5.3030])
    """

    kind: Literal["mode"] = "mode"
    s: float = 1.29

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1 <= self.s <= 2 / (math.pi - 2):
            raise ValueError(f"s must lie in [-1, 2 / (pi - 2) = 1.7519], got {self.s}")

    def _t(self, u: Tensor) -> Tensor:
        """t(u) in increasing order; 1 - t(u) = t(1 - u), which is exact in both tails."""
        return (1 + self.s) * u - self.s * torch.sin(math.pi / 2 * u) ** 2

    def _sigma(self, z: Tensor) -> Tensor:
        return self._t(normal_cdf(z)) / self._t(normal_cdf(-z))

    def _pdf(self, log_sigma: Tensor) -> Tensor:
        log_sigma = -log_sigma.abs()  # it is symmetric, and exact below the median
        t = torch.sigmoid(log_sigma)
        low, high = torch.zeros_like(t), torch.ones_like(t)
        for _ in range(60):  # bisection for u(t)
            u = (low + high) / 2
            below = self._t(u) < t
            low, high = torch.where(below, u, low), torch.where(below, high, u)
        slope = 1 + self.s - self.s * math.pi / 2 * torch.sin(math.pi * u)  # dt / du
        return t * torch.sigmoid(-log_sigma) / slope
