"""DDPM's sampler (arXiv 2006.11239), with the variance that a network predicts (2102.09672)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from edm2lite.diffusion.ddpm import levels
from edm2lite.sampling.solvers import Denoise, Noise, Solver, State, Stepwise, each_step


def respaced_sigmas(num_steps: int) -> Tensor:
    """Levels of DDPM's linear schedule at equal distances of the step, both ends included.

    Args:
        num_steps: Number of levels, 2 to 1000.

    Returns:
        [num_steps] float64, decreasing: steps ``round(999 i / (num_steps - 1))``.

    Raises:
        ValueError: If there are fewer levels, or more.

    Example:
        >>> respaced_sigmas(4)  # of the steps 999, 666, 333 and 0
        tensor([1.5741e+02, 9.4889e+00, 1.4624e+00, 1.0001e-02], dtype=torch.float64)
    """
    if not 2 <= num_steps <= 1000:
        raise ValueError(f"num_steps must lie in 2 to 1000, got {num_steps}")
    steps = torch.arange(num_steps, dtype=torch.float64) * (999 / (num_steps - 1))
    return levels("linear")[steps.round().long()].flip(0)


@torch.no_grad()
def ancestral_steps(
    denoise: Denoise | Stepwise, x: Tensor, sigmas: Tensor, *, noise: Noise
) -> Iterator[State]:
    """States of DDPM's sampler: a draw from the distribution of the next level, given x and D_x.

    From sigma to t = sigma_next it has the mean ``D_x + (t / sigma)**2 (x - D_x)`` and the variance
    ``t**2 (1 - (t / sigma)**2)``, if the image is D_x. Where ``denoise`` returns v too, that is the
    lower bound of the variance; the upper one, which is right for images of white noise of variance
    1, is ``(sigma**2 - t**2) (1 + t**2) / (1 + sigma**2)``, and v of -1 to 1 interpolates between
    their logarithms.

    Args:
        denoise: The denoiser; returns D_x, or D_x and v one after the other in the channels.
        x: [N, C, H, W], noise at the first level.
        sigmas: [N + 1] decreasing noise levels.
        noise: Standard normal values shaped like ``x``, new ones at every call.

    Example:
        >>> zero = torch.zeros(1, 1, 1, 1)
        >>> states = ancestral_steps(lambda x, sigma: zero, zero + 4, torch.tensor([4.0, 2.0, 0]),
        ...                          noise=lambda: zero + 1)
        >>> [f"{state.x.item():.4f}" for state in states]  # 4 / 4 + 2 sqrt(3 / 4), then D_x
        ['2.7321', '0.0000']
    """
    for i, (denoise_i, sigma, t) in enumerate(each_step(denoise, sigmas)):
        D_x = denoise_i(x, sigma)
        v = None if D_x.shape == x.shape else D_x[:, x.shape[1] :]
        D_x = D_x[:, : x.shape[1]]
        share = 0.0 if math.isinf(sigma) else (t / sigma) ** 2
        x = D_x + share * (x - D_x) if share else D_x
        if t > 0:
            variance = t**2 * (1 - share)
            if v is None:
                x = x + math.sqrt(variance) * noise()
            else:
                upper = (
                    1 + t**2
                    if math.isinf(sigma)
                    else (sigma**2 - t**2) * (1 + t**2) / (1 + sigma**2)
                )
                log = torch.lerp(
                    torch.full_like(v, math.log(variance)),
                    torch.full_like(v, math.log(upper)),
                    (1 + v) / 2,
                )
                x = x + (log / 2).exp() * noise()
        yield State(i, t, x, D_x)


ancestral = Solver(ancestral_steps, draws_noise=True, takes_variance=True)
"""DDPM's sampler: :func:`ancestral_steps`."""
