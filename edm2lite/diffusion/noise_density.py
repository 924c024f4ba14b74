"""At which noise levels a network is trained: densities of ln sigma.

The level of a sample is a function of one standard normal value z, ``density.sigma(z)``, increasing
in z; densities that are defined by their quantiles use u = Phi(z). Every density takes a shift
alpha, ``sigma' = alpha sigma``. With alpha = sigma_data, those that their papers define for data of
variance 1 (cosine, vp, logit_normal, mode, ddpm) mean the same for data of that deviation. A shift
is also how arXiv 2403.03206 moves levels between resolutions: with ``t = sigma / (1 + sigma)`` it
is ``t' = alpha t / (1 + (alpha - 1) t)``.
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
        "cosine": "edm2lite.diffusion.quantile_densities:Cosine",
        "vp": "edm2lite.diffusion.quantile_densities:VP",
        "mode": "edm2lite.diffusion.quantile_densities:Mode",
        "ddpm": "edm2lite.diffusion.ddpm:DDPM",
    },
)
"""Densities of noise levels by ``kind``."""


@dataclass(frozen=True, kw_only=True)
class NoiseDensity(abc.ABC):
    """A density of noise levels; a subclass is a frozen dataclass with its parameters.

    Attributes:
        kind: Name in :data:`DENSITIES`, or ``module:Class`` of the subclass.
        shift: Factor alpha of every level.

    Example:
        >>> @dataclass(frozen=True, kw_only=True)
        ... class Logistic(NoiseDensity):
        ...     kind: str = "my_module:Logistic"
        ...     def _sigma(self, z):
        ...         return torch.exp(torch.logit(normal_cdf(z)))
        ...     def _pdf(self, log_sigma):
        ...         return torch.sigmoid(log_sigma) * torch.sigmoid(-log_sigma)
        >>> Logistic(shift=0.5).sigma(torch.zeros(1))
        tensor([0.5000])
    """

    kind: str
    shift: float = 1.0

    kinds: ClassVar[Kinds[type[NoiseDensity]]] = DENSITIES

    def __post_init__(self) -> None:
        check_positive(self, "shift")

    def sigma(self, z: Tensor) -> Tensor:
        """Noise levels of standard normal values ``z``, of their shape and dtype."""
        return (self._sigma(z) * self.shift).to(z.dtype)

    def pdf(self, log_sigma: Tensor) -> Tensor:
        """Density of ln sigma; its integral is 1 - :attr:`mass_at_infinity`.

        Args:
            log_sigma: Natural logarithms of noise levels, any shape, float64.
        """
        return self._pdf(log_sigma - math.log(self.shift))

    @property
    def mass_at_infinity(self) -> float:
        """Probability of pure noise."""
        return 0.0

    def location(self) -> tuple[float, float]:
        """Median of ln sigma, and half the width of the middle range that holds 68.3 %.

        For a log-normal density these are P_mean and P_std.
        """
        low, middle, high = self.sigma(torch.tensor([-1.0, 0.0, 1.0]).double()).log().tolist()
        if math.isinf(high):  # a table of few levels that ends in pure noise
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
    """``ln sigma ~ N(P_mean, P_std**2)`` (arXiv 2206.00364).

    Attributes:
        P_mean: Mean of ln sigma.
        P_std: Standard deviation of ln sigma.

    Example:
        >>> LogNormal(P_mean=-0.4).sigma(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([0.2466, 0.6703, 1.8221])
    """

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

    The logit of t is ln sigma: this is the log-normal density by its names in rectified flow.

    Attributes:
        m: Mean of the logit.
        s: Standard deviation of the logit.

    Example:
        >>> sigma = LogitNormal(m=1.0).sigma(torch.zeros(1))
        >>> torch.logit(sigma / (1 + sigma))
        tensor([1.])
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
    """ln sigma uniform between two levels (NCSN++, arXiv 2011.13456).

    Attributes:
        sigma_min: Lowest level.
        sigma_max: Highest level.

    Example:
        >>> LogUniform(sigma_min=0.1, sigma_max=10).sigma(torch.zeros(1))
        tensor([1.])
    """

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


def normal_cdf(z: Tensor) -> Tensor:
    """Phi(z), the probability of less than z under the standard normal, in float64.

    It is exact in the lower tail; of the upper one take ``normal_cdf(-z)``.

    Example:
        >>> normal_cdf(torch.tensor([0.0, 1.0]))
        tensor([0.5000, 0.8413], dtype=torch.float64)
    """
    u: Tensor = torch.special.ndtr(z.double())
    return u


def _normal(z: Tensor) -> Tensor:
    return torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


def check_positive(density: NoiseDensity, name: str) -> None:
    """Raise ValueError unless a field of the density is a positive, finite number.

    Example:
        >>> check_positive(LogNormal(), "P_std")
    """
    value = getattr(density, name)
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive, got {value}")
