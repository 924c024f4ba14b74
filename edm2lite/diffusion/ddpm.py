"""Discrete schedules of DDPM and its relatives: noise levels for training and sampling.

Such a model sees ``z_t = a_t y + sqrt(1 - a_t**2) n``, where ``a_t**2`` is the product of
``1 - beta`` up to t. That is ``x / sqrt(1 + sigma**2)`` at ``sigma_t = sqrt(1 - a_t**2) / a_t``.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from edm2lite.diffusion.noise_density import NoiseDensity, normal_cdf

Schedule = Literal["linear", "scaled_linear", "cosine"]

BETAS: dict[Schedule, tuple[float, float] | None] = {
    "linear": (1e-4, 0.02),
    "scaled_linear": (0.00085, 0.012),
    "cosine": None,
}
"""First and last beta by default, for 1000 levels: DDPM (arXiv 2006.11239), Stable Diffusion."""


def levels(
    schedule: Schedule,
    num_levels: int = 1000,
    *,
    beta_start: float | None = None,
    beta_end: float | None = None,
    zero_terminal_snr: bool = False,
) -> Tensor:
    """Noise levels of a schedule.

    Args:
        schedule: ``linear`` in beta, ``scaled_linear`` in sqrt(beta), or ``cosine`` (arXiv
            2102.09672): ``a_t = cos(pi/2 (t + 0.008) / 1.008)``, t = 1/N .. 1, beta at most 0.999.
        num_levels: Number of levels N, at least 3.
        beta_start: First beta. [default: that of :data:`BETAS`]
        beta_end: Last beta. [default: that of :data:`BETAS`]
        zero_terminal_snr: Whether a_t is shifted and scaled so that a_1 stays and a_N is 0 (arXiv
            2305.08891); the betas of the cosine are then not limited.

    Returns:
        [N] float64, increasing; with zero terminal SNR the last is infinite.

    Raises:
        ValueError: If betas are out of order, or given for the cosine, or levels are too few.

    Example:
        >>> sigmas = levels("scaled_linear")
        >>> f"{sigmas[0]:.4f} to {sigmas[-1]:.2f}"
        '0.0292 to 14.61'
        >>> levels("scaled_linear", zero_terminal_snr=True)[-1].item()
        inf
    """
    if num_levels < 3:
        raise ValueError(f"num_levels must be at least 3, got {num_levels}")
    if schedule not in BETAS:
        raise ValueError(f"schedule must be one of {', '.join(BETAS)}, got {schedule!r}")
    defaults = BETAS[schedule]
    if defaults is None:
        if beta_start is not None or beta_end is not None:
            raise ValueError("beta_start and beta_end belong to linear and scaled_linear")
        a = _cosine(num_levels, math.inf if zero_terminal_snr else 0.999)
    else:
        first = defaults[0] if beta_start is None else beta_start
        last = defaults[1] if beta_end is None else beta_end
        if not 0 < first < last < 1:
            raise ValueError(f"need 0 < beta_start < beta_end < 1, got {first} and {last}")
        power = 1 if schedule == "linear" else 2
        ends = first ** (1 / power), last ** (1 / power)
        beta = torch.linspace(*ends, num_levels, dtype=torch.float64) ** power
        a = (1 - beta).cumprod(0).sqrt()
    if zero_terminal_snr:
        a = (a - a[-1]) * a[0] / (a[0] - a[-1])
    return ((1 - a) * (1 + a)).sqrt() / a


def trailing_sigmas(levels: Tensor, num_steps: int) -> Tensor:
    """Levels to sample at: the last one, and evenly spaced indices below it (arXiv 2305.08891).

    Steps that are spaced from the first level ("leading") do not begin at the last level, and so
    not at the noise in which training ended.

    Args:
        levels: [N] increasing; the last may be infinite.
        num_steps: Number of steps S, 1 to N.

    Returns:
        [S + 1] decreasing: the levels with indices ``round(N - k N / S) - 1``, then 0.

    Raises:
        ValueError: If there are more steps than levels, or none.

    Example:
        >>> trailing_sigmas(torch.tensor([0.1, 0.5, 1.0, 5.0, 25.0, torch.inf]).double(), 3)
        tensor([   inf, 5.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    if not 1 <= num_steps <= len(levels):
        raise ValueError(f"num_steps must lie in 1 to {len(levels)}, got {num_steps}")
    ends = torch.arange(num_steps, 0, -1, dtype=torch.float64) * (len(levels) / num_steps)
    return torch.cat([levels[ends.round().long() - 1], levels.new_zeros(1)])


@dataclass(frozen=True, kw_only=True)
class DDPM(NoiseDensity):
    """One of the levels of a discrete schedule, each with the same probability.

    Attributes:
        schedule: Name of the schedule, see :func:`levels`.
        num_levels: Number of levels.
        beta_start: First beta. [default: that of the schedule]
        beta_end: Last beta. [default: that of the schedule]
        zero_terminal_snr: Whether the last level is pure noise.

    Example:
        >>> density = DDPM(num_levels=4, zero_terminal_snr=True)
        >>> density.sigma(torch.tensor([-3.0, 3.0])).isinf(), density.mass_at_infinity
        (tensor([False,  True]), 0.25)
    """

    kind: Literal["ddpm"] = "ddpm"
    schedule: Schedule = "scaled_linear"
    num_levels: int = 1000
    beta_start: float | None = None
    beta_end: float | None = None
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.levels()

    def levels(self) -> Tensor:
        """[num_levels] float64, increasing, without the shift."""
        return levels(
            self.schedule,
            self.num_levels,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            zero_terminal_snr=self.zero_terminal_snr,
        )

    @property
    def mass_at_infinity(self) -> float:
        """Probability of pure noise: that of the last level under zero terminal SNR."""
        return 1 / self.num_levels if self.zero_terminal_snr else 0.0

    def _sigma(self, z: Tensor) -> Tensor:
        index = (normal_cdf(z) * self.num_levels).long().clamp(max=self.num_levels - 1)
        return _on_device(self, z.device)[index]

    def _pdf(self, log_sigma: Tensor) -> Tensor:
        """The probability of each level, spread over the interval that is nearest to it."""
        finite = self.levels()[: self.num_levels - self.zero_terminal_snr].log()
        middles = (finite[1:] + finite[:-1]) / 2
        edges = torch.cat([2 * finite[:1] - middles[:1], middles, 2 * finite[-1:] - middles[-1:]])
        cell = torch.searchsorted(edges, log_sigma) - 1
        inside = (cell >= 0) & (cell < len(finite))
        return inside / (edges.diff()[cell.clamp(0, len(finite) - 1)] * self.num_levels)


@functools.lru_cache
def _on_device(density: DDPM, device: torch.device) -> Tensor:
    """The levels of a density on a device, moved there once."""
    return density.levels().to(device)


def _cosine(num_levels: int, largest_beta: float) -> Tensor:
    t = torch.linspace(0, 1, num_levels + 1, dtype=torch.float64)
    a = torch.cos(math.pi / 2 * (t + 0.008) / 1.008)
    beta = 1 - (a[1:] / a[:-1]) ** 2
    return (1 - beta.clamp(max=largest_beta)).cumprod(0).sqrt()
