"""At which noise levels a network is trained: densities of ln sigma.

A sample's level is a function of one standard normal value z, ``density.sigma(z)``, increasing in
z; those defined by their quantiles take u = Phi(z). Every density takes a shift alpha, ``sigma' =
alpha sigma``. With alpha = sigma_data, densities that their papers define for data of variance 1
(cosine, vp, logit_normal, mode, ddpm) mean the same for ours. It is also how arXiv 2403.03206 moves
levels between resolutions: ``t' = alpha t / (1 + (alpha - 1) t)`` with ``t = sigma / (1 + sigma)``.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from edm2lite.kinds import Kinds

DENSITIES: Kinds[type[NoiseDensity]] = Kinds(
    "density of noise levels",
    {
        "lognormal": "edm2lite.diffusion.noise_density:LogNormal",
        "log_uniform": "edm2lite.diffusion.noise_density:LogUniform",
        "logit_normal": "edm2lite.diffusion.noise_density:LogitNormal",
        "cosine": "edm2lite.diffusion.noise_density:Cosine",
        "vp": "edm2lite.diffusion.noise_density:VP",
        "mode": "edm2lite.diffusion.noise_density:Mode",
        "ddpm": "edm2lite.diffusion.ddpm:DDPM",
    },
)
"""Densities of noise levels by ``kind``."""


@dataclass(frozen=True, kw_only=True)
class NoiseDensity(abc.ABC):
    """What all densities have in common.

    Attributes:
        kind: Its name.
        shift: alpha, multiplies every level.
    """

    kind: str
    shift: float = 1.0

    kinds: ClassVar[Kinds[type[NoiseDensity]]] = DENSITIES

    def __post_init__(self) -> None:
        check_positive(self, "shift")

    def sigma(self, z: Tensor) -> Tensor:
        """Noise levels of standard normal values, same shape and dtype."""
        return (self._sigma(z) * self.shift).to(z.dtype)

    def pdf(self, log_sigma: Tensor) -> Tensor:
        """Density of ln sigma; its integral is 1 - :attr:`mass_at_infinity`.

        Args:
            log_sigma: Natural logarithms, any shape, float64.
        """
        return self._pdf(log_sigma - math.log(self.shift))

    @property
    def mass_at_infinity(self) -> float:
        """Probability of pure noise."""
        return 0.0

    def location(self) -> tuple[float, float]:
        """Median of ln sigma, and half the width of the range about it that holds 68.3 %.

        Of a log-normal density these are P_mean and P_std.
        """
        low, middle, high = self.sigma(torch.tensor([-1.0, 0.0, 1.0]).double()).log().tolist()
        if math.isinf(high):  # of a table of few levels that ends in pure noise
            high = 2 * middle - low
        return middle, (high - low) / 2

    @abc.abstractmethod
    def _sigma(self, z: Tensor) -> Tensor:
        """Levels without the shift; may be of a wider dtype than z."""

    @abc.abstractmethod
    def _pdf(self, log_sigma: Tensor) -> Tensor:
        """Density without the shift."""


@dataclass(frozen=True, kw_only=True)
class LogNormal(NoiseDensity):
    """``ln sigma ~ N(P_mean, P_std**2)`` (arXiv 2206.00364)."""

    kind: Literal["lognormal"] = "lognormal"
    P_mean: float = -0.4
    P_std: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "P_std")

    def _sigma(self, z: Tensor) -> Tensor:
        return torch.exp(z * self.P_std + self.P_mean)

    def _pdf(self, log_sigma: Tensor) -> Tensor:
        return _normal((log_sigma - self.P_mean) / self.P_std) / self.P_std


@dataclass(frozen=True, kw_only=True)
class LogitNormal(NoiseDensity):
    """``t = sigma / (1 + sigma)`` with ``logit t ~ N(m, s**2)`` (arXiv 2403.03206).

    The logit of t is ln sigma: a log-normal density under its names in rectified flow.
    """

    kind: Literal["logit_normal"] = "logit_normal"
    m: float = 0.0
    s: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "s")

    def _sigma(self, z: Tensor) -> Tensor:
        return torch.exp(z * self.s + self.m)

    def _pdf(self, log_sigma: Tensor) -> Tensor:
        return _normal((log_sigma - self.m) / self.s) / self.s


@dataclass(frozen=True, kw_only=True)
class LogUniform(NoiseDensity):
    """ln sigma uniform between two levels (NCSN++, arXiv 2011.13456)."""

    kind: Literal["log_uniform"] = "log_uniform"
    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"need 0 < sigma_min < sigma_max < inf, got {self.sigma_min} and {self.sigma_max}"
            )

    def _sigma(self, z: Tensor) -> Tensor:
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return torch.exp(low + (high - low) * normal_cdf(z))

    def _pdf(self, log_sigma: Tensor) -> Tensor:
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        inside = (low <= log_sigma) & (log_sigma <= high)
        return inside.to(log_sigma.dtype) / (high - low)


@dataclass(frozen=True, kw_only=True)
class Cosine(NoiseDensity):
    """``sigma = tan(pi u / 2)``: ``p = 1 / (pi cosh(ln sigma))``.

    The cosine schedule (arXiv 2102.09672) in continuous time, and CosMap (2403.03206).
    """

    kind: Literal["cosine"] = "cosine"

    def _sigma(self, z: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * normal_cdf(z)) / torch.sin(math.pi / 2 * normal_cdf(-z))

    def _pdf(self, log_sigma: Tensor) -> Tensor:
        return 1 / (math.pi * torch.cosh(log_sigma))


@dataclass(frozen=True, kw_only=True)
class VP(NoiseDensity):
    """``sigma**2 = exp(beta_d u**2 / 2 + beta_min u) - 1`` (arXiv 2011.13456), u uniform."""

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

    s > 0 prefers the middle, s < 0 the ends; 0 is uniform in t.
    """

    kind: Literal["mode"] = "mode"
    s: float = 1.29

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1 <= self.s <= 2 / (math.pi - 2):
            raise ValueError(f"s must lie in [-1, 2 / (pi - 2) = 1.7519], got {self.s}")

    def _t(self, u: Tensor) -> Tensor:
        """Increasing; 1 - t(u) = t(1 - u), which is exact in both tails."""
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


def normal_cdf(z: Tensor) -> Tensor:
    """Probability of less than z under the standard normal, float64; exact in the lower tail."""
    u: Tensor = torch.special.ndtr(z.double())
    return u


def _normal(z: Tensor) -> Tensor:
    return torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


def check_positive(density: NoiseDensity, name: str) -> None:
    """Raise ValueError unless that field is a positive number."""
    value = getattr(density, name)
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive, got {value}")
