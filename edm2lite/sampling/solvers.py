"""Samplers: ``(denoise, x, sigmas) -> x``.

A sampler sees the network only as ``denoise(x, sigma) -> D_x`` with a scalar sigma, or as something
that has one such function for each step (:class:`Stepwise`: guidance within an interval). Each
sampler exists twice: ``heun_steps`` yields the state after every step, ``heun`` returns the last x.

Note [sigma = infinity]. Where the first level is infinite, x is the noise itself, of standard
deviation 1, and ``denoise`` is called with it and with sigma = inf. The first step is the limit of
Euler's, ``x_1 = D_inf + sigma_1 x``, whatever the sampler.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[], Tensor]


@runtime_checkable
class Stepwise(Protocol):
    """A denoiser that depends on the step."""

    def per_step(self) -> Iterator[Denoise]:
        """One denoiser per step of one sampling run, in their order, without an end."""
        ...


def per_step(denoise: Denoise | Stepwise) -> Iterator[Denoise]:
    """One denoiser for each step to come: the same one, unless it depends on the step."""
    return denoise.per_step() if isinstance(denoise, Stepwise) else itertools.repeat(denoise)


@dataclass(frozen=True)
class State:
    """Where a sampler is after a step.

    Attributes:
        step: Index of the step, from 0.
        sigma: Noise level of ``x``.
        x: [N, C, H, W].
        D_x: The denoised images that the step set out with: a preview.
    """

    step: int
    sigma: float
    x: Tensor
    D_x: Tensor


@torch.no_grad()
def euler_steps(denoise: Denoise | Stepwise, x: Tensor, sigmas: Tensor) -> Iterator[State]:
    """States of Euler's first-order method on the probability-flow ODE; one call a step."""
    for i, (denoise_i, sigma, sigma_next) in enumerate(_steps(denoise, sigmas)):
        D_x = _call(denoise_i, x, sigma)
        x = _euler(x, D_x, sigma, sigma_next)
        yield State(i, sigma_next, x, D_x)


@torch.no_grad()
def heun_steps(
    denoise: Denoise | Stepwise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise | None = None,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    S_noise: float = 1.0,
) -> Iterator[State]:
    """States of Heun's second-order method on the probability-flow ODE (EDM, Algorithms 1 and 2).

    Args:
        denoise: Called 2N - 1 times for N steps: the step to 0 is an Euler step.
        x: [N, C, H, W], see :func:`first_state`.
        sigmas: [N + 1], decreasing.
        noise: Standard normal values shaped like ``x``, new ones at every call; for churn. Let row
            i depend on image i alone, and images do not depend on their batch.
        S_churn: Noise added over the run; a step at sigma first goes up to sigma (1 + min(S_churn /
            N, sqrt(2) - 1)). 0 is deterministic.
        S_min: Lowest level at which noise is added.
        S_max: Highest level at which noise is added.
        S_noise: Standard deviation of the noise added.

    Raises:
        ValueError: Churn without ``noise``.
    """
    if S_churn and noise is None:
        raise ValueError("churn needs noise: give a function that returns values shaped like x")
    churn = min(S_churn / (len(sigmas) - 1), math.sqrt(2) - 1)
    for i, (denoise_i, sigma, sigma_next) in enumerate(_steps(denoise, sigmas)):
        if churn and noise is not None and S_min <= sigma <= S_max and sigma < math.inf:
            higher = sigma * (1 + churn)
            x = x + math.sqrt(higher**2 - sigma**2) * S_noise * noise()
            sigma = higher
        D_x = _call(denoise_i, x, sigma)
        x_next = _euler(x, D_x, sigma, sigma_next)
        if sigma_next > 0 and sigma < math.inf:
            slope = (x - D_x) / sigma
            slope_next = (x_next - _call(denoise_i, x_next, sigma_next)) / sigma_next
            x_next = x + (sigma_next - sigma) * (slope + slope_next) / 2
        x = x_next
        yield State(i, sigma_next, x, D_x)


@torch.no_grad()
def dpmpp_2m_steps(denoise: Denoise | Stepwise, x: Tensor, sigmas: Tensor) -> Iterator[State]:
    """States of DPM-Solver++(2M): second order from one call a step, by the step before.

    In log sigma the ODE is linear but for D_x, which is extrapolated to the middle of the step from
    its last two values (arXiv 2211.01095). The first step and the step to 0 are Euler steps.
    """
    D_before, h_before = None, math.inf
    for i, (denoise_i, sigma, sigma_next) in enumerate(_steps(denoise, sigmas)):
        D_x = _call(denoise_i, x, sigma)
        target = D_x
        h = math.log(sigma / sigma_next) if sigma_next > 0 and sigma < math.inf else math.inf
        if D_before is not None and h < math.inf:
            target = D_x + (D_x - D_before) * (h / (2 * h_before))
        x = _euler(x, target, sigma, sigma_next)
        D_before, h_before = D_x, h
        yield State(i, sigma_next, x, D_x)


def euler(denoise: Denoise | Stepwise, x: Tensor, sigmas: Tensor) -> Tensor:
    """X at ``sigmas[-1]`` by :func:`euler_steps`."""
    return _last(euler_steps(denoise, x, sigmas))


def heun(denoise: Denoise | Stepwise, x: Tensor, sigmas: Tensor, **churn: Any) -> Tensor:
    """X at ``sigmas[-1]`` by :func:`heun_steps`, which see."""
    return _last(heun_steps(denoise, x, sigmas, **churn))


def dpmpp_2m(denoise: Denoise | Stepwise, x: Tensor, sigmas: Tensor) -> Tensor:
    """X at ``sigmas[-1]`` by :func:`dpmpp_2m_steps`."""
    return _last(dpmpp_2m_steps(denoise, x, sigmas))


def _last(states: Iterator[State]) -> Tensor:
    for state in states:
        x = state.x
    return x


def _steps(denoise: Denoise | Stepwise, sigmas: Tensor) -> Iterator[tuple[Denoise, float, float]]:
    """The denoiser of each step, the level that it starts from and the one that it goes to."""
    levels = sigmas.tolist()
    return zip(per_step(denoise), levels[:-1], levels[1:], strict=False)


def _call(denoise: Denoise, x: Tensor, sigma: float) -> Tensor:
    return denoise(x, x.new_full((), sigma))  # filled on the device: no transfer, no waiting


def _euler(x: Tensor, D_x: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """X at ``sigma_next`` if D_x stays as it is."""
    return D_x + sigma_next * x if math.isinf(sigma) else D_x + sigma_next / sigma * (x - D_x)
