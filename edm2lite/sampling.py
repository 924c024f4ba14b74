"""Noise levels and samplers: ``(denoise, x, sigmas) -> x``.

A sampler sees the network only as ``denoise(x, sigma) -> D_x`` with a scalar sigma.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]


def karras_sigmas(
    num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    """Noise levels ``(a + i/(N-1) (b - a))**rho`` with a, b the max, min level to the 1/rho.

    Args:
        num_steps: N, at least 1; a single step goes from sigma_max to 0.
        sigma_min, sigma_max: Last and first positive level.
        rho: Larger values take shorter steps near sigma_min.

    Returns:
        [N + 1] float64, decreasing, ending in 0 (EDM, Eq. 5).

    Raises:
        ValueError: No step, or levels out of order.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"need 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
    ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


@torch.no_grad()
def heun(denoise: Denoise, x: Tensor, sigmas: Tensor) -> Tensor:
    """Heun's second-order method on the probability-flow ODE (EDM, Algorithm 1).

    Args:
        denoise: Called 2N - 1 times for N steps.
        x: [N, C, H, W], noise of standard deviation ``sigmas[0]``.
        sigmas: [N + 1], decreasing; the step to 0 is an Euler step.

    Returns:
        x at ``sigmas[-1]``, in the dtype of ``x``.
    """
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        slope = (x - denoise(x, sigma)) / sigma
        x_next = x + (sigma_next - sigma) * slope
        if sigma_next > 0:
            slope_next = (x_next - denoise(x_next, sigma_next)) / sigma_next
            x_next = x + (sigma_next - sigma) * (slope + slope_next) / 2
        x = x_next
    return x
