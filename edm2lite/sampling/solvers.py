"""Solvers of the probability-flow ODE: ``(denoise, x, sigmas) -> x``.

A solver sees the network only as ``denoise(x, sigma) -> D_x`` with a scalar sigma, or as an object
that has one such function for each step (:class:`Stepwise`: guidance within an interval). Each is
written once, as a generator of the state after every step (``heun_steps``); :class:`Solver` makes
of it a function that returns the last x (``heun``).

Note [sigma = infinity]. Where the first level is infinite, x is the noise itself, of standard
deviation 1, and ``denoise`` is called with it and with sigma = inf. The first step is the limit of
Euler's, ``x_1 = D_inf + sigma_1 x``, whatever the solver.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""Function of x [N, C, H, W] and a scalar sigma that returns the denoised images D_x."""
Noise = Callable[[], Tensor]
"""Function that returns new standard normal values shaped like x at every call."""


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
    """The state of a solver after a step.

    Attributes:
        step: Index of the step, from 0.
        sigma: Noise level of ``x``.
        x: [N, C, H, W], clean images plus noise of standard deviation sigma.
        D_x: [N, C, H, W], the denoised images at the beginning of the step: a preview.

    Example:
        >>> sigmas = torch.tensor([2.0, 1.0])
        >>> (state,) = euler_steps(lambda x, sigma: x / 2, torch.ones(1), sigmas)
        >>> state.sigma, state.x, state.D_x
        (1.0, tensor([0.7500]), tensor([0.5000]))
    """

    step: int
    sigma: float
    x: Tensor
    D_x: Tensor


Steps = Callable[..., Iterator[State] | Tensor]
"""Function ``(denoise, x, sigmas, **options)`` that yields the state after every step, or returns
x at the last level."""


@dataclass(frozen=True)
class Solver:
    """A solver as a function ``(denoise, x, sigmas, **options) -> x``.

    Attributes:
        steps: What it does, step by step.
        options: Names of the fields of :class:`edm2lite.sampling.settings.Sampling` that ``steps``
            takes as keywords besides: among S_churn, S_min, S_max and S_noise.
        draws_noise: Whether ``steps`` takes a keyword ``noise``, a :data:`Noise`.
        takes_variance: Whether ``denoise`` may return the channels of
            :class:`edm2lite.diffusion.variance.WithVariance` behind D_x.

    Example:
        >>> sigmas = torch.tensor([2.0, 1.0, 0.0])
        >>> heun(lambda x, sigma: 0 * x, torch.full((1, 1, 1, 1), 2.0), sigmas).item()
        0.0
        >>> [state.sigma for state in heun.steps(lambda x, s: 0 * x, torch.ones(1), sigmas)]
        [1.0, 0.0]
    """

    steps: Steps
    options: tuple[str, ...] = ()
    draws_noise: bool = False
    takes_variance: bool = False

    def __call__(
        self, denoise: Denoise | Stepwise, x: Tensor, sigmas: Tensor, **options: Any
    ) -> Tensor:
        """The images at the last noise level.

        Args:
            denoise: The denoiser.
            x: [N, C, H, W], noise at the first level (:func:`edm2lite.sampling.first_state`).
            sigmas: [N + 1] decreasing noise levels.
            **options: Keywords of :attr:`steps`.
        """
        made = self.steps(denoise, x, sigmas, **options)
        return made if isinstance(made, Tensor) else last(made)


def last(states: Iterator[State]) -> Tensor:
    """Run a solver to its end and return the last x.

    Args:
        states: The states after its steps.

    Raises:
        ValueError: If there is no step.
    """
    x = None
    for state in states:
        x = state.x
    if x is None:
        raise ValueError("a solver must take at least one step, got none; give two noise levels")
    return x


def each_step(
    denoise: Denoise | Stepwise, sigmas: Tensor
) -> Iterator[tuple[Callable[[Tensor, float], Tensor], float, float]]:
    """For each step its denoiser, the level where it begins and the one where it ends.

    A solver that takes its denoisers from here works with guidance of every kind.

    Args:
        denoise: The denoiser, which may depend on the step.
        sigmas: [N + 1] decreasing noise levels.

    Yields:
        ``denoise_i(x, sigma) -> D_x``, which takes sigma as a number; ``sigma``; ``sigma_next``.

    Example:
        >>> def euler_of_mine(denoise, x, sigmas):
        ...     for denoise_i, sigma, sigma_next in each_step(denoise, sigmas):
        ...         slope = (x - denoise_i(x, sigma)) / sigma
        ...         x = x + (sigma_next - sigma) * slope
        ...     return x
        >>> euler_of_mine(lambda x, sigma: x / 2, torch.ones(1), torch.tensor([4.0, 2.0]))
        tensor([0.7500])
    """
    for (sigma, sigma_next), denoise_i in zip(
        itertools.pairwise(sigmas.tolist()), per_step(denoise), strict=False
    ):
        yield functools.partial(_call, denoise_i), sigma, sigma_next


def _call(denoise: Denoise, x: Tensor, sigma: float) -> Tensor:
    return denoise(x, x.new_full((), sigma))  # filled on the device: no transfer, no waiting


def _euler(x: Tensor, D_x: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """X at ``sigma_next`` if D_x stays as it is."""
    return D_x + sigma_next * x if math.isinf(sigma) else D_x + sigma_next / sigma * (x - D_x)


@torch.no_grad()
def euler_steps(denoise: Denoise | Stepwise, x: Tensor, sigmas: Tensor) -> Iterator[State]:
    """States of Euler's first-order method on the probability-flow ODE; one call per step.

    Args:
        denoise: The denoiser.
        x: [N, C, H, W], noise at the first level.
        sigmas: [N + 1] decreasing noise levels.

    Example:
        >>> states = euler_steps(lambda x, sigma: x / 2, torch.ones(1), torch.tensor([4.0, 2.0, 0]))
        >>> [(state.step, state.sigma, state.x.item()) for state in states]
        [(0, 2.0, 0.75), (1, 0.0, 0.375)]
    """
    for i, (denoise_i, sigma, sigma_next) in enumerate(each_step(denoise, sigmas)):
        D_x = denoise_i(x, sigma)
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
        denoise: The denoiser, called 2N - 1 times in N steps: the step to 0 is an Euler step.
        x: [N, C, H, W], noise at the first level.
        sigmas: [N + 1] decreasing noise levels.
        noise: Standard normal values shaped like ``x``, new ones at every call; for churn. If row
            i depends on image i alone, images do not depend on their batch.
        S_churn: Noise added over the whole run; a step at sigma first goes up to sigma (1 +
            min(S_churn / N, sqrt(2) - 1)). With 0 the solver is deterministic.
        S_min: Lowest level at which noise is added.
        S_max: Highest level at which noise is added.
        S_noise: Standard deviation of the noise added.

    Raises:
        ValueError: If there is churn without ``noise``.

    Example:
        >>> states = heun_steps(lambda x, sigma: x / 2, torch.ones(1), torch.tensor([4.0, 2.0, 0]))
        >>> [(state.sigma, state.x.item()) for state in states]
        [(2.0, 0.6875), (0.0, 0.34375)]
    """
    if S_churn and noise is None:
        raise ValueError("churn needs noise: give a function that returns values shaped like x")
    churn = min(S_churn / (len(sigmas) - 1), math.sqrt(2) - 1)
    for i, (denoise_i, sigma, sigma_next) in enumerate(each_step(denoise, sigmas)):
        if churn and noise is not None and S_min <= sigma <= S_max and sigma < math.inf:
            higher = sigma * (1 + churn)
            x = x + math.sqrt(higher**2 - sigma**2) * S_noise * noise()
            sigma = higher
        D_x = denoise_i(x, sigma)
        x_next = _euler(x, D_x, sigma, sigma_next)
        if sigma_next > 0 and sigma < math.inf:
            slope = (x - D_x) / sigma
            slope_next = (x_next - denoise_i(x_next, sigma_next)) / sigma_next
            x_next = x + (sigma_next - sigma) * (slope + slope_next) / 2
        x = x_next
        yield State(i, sigma_next, x, D_x)


@torch.no_grad()
def dpmpp_2m_steps(denoise: Denoise | Stepwise, x: Tensor, sigmas: Tensor) -> Iterator[State]:
    """States of DPM-Solver++(2M): second order from one call per step, by remembering the last.

    In ln sigma the ODE is linear except for D_x, which is extrapolated to the middle of the step
    from its last two values (arXiv 2211.01095). The first step and the step to 0 are Euler steps.

    Args:
        denoise: The denoiser.
        x: [N, C, H, W], noise at the first level.
        sigmas: [N + 1] decreasing noise levels.

    Example:
        >>> sigmas = torch.tensor([4.0, 2.0, 1.0])
        >>> states = dpmpp_2m_steps(lambda x, sigma: x / 2, torch.ones(1), sigmas)
        >>> [(state.sigma, state.x.item()) for state in states]
        [(2.0, 0.75), (1.0, 0.53125)]
    """
    D_before, h_before = None, math.inf
    for i, (denoise_i, sigma, sigma_next) in enumerate(each_step(denoise, sigmas)):
        D_x = denoise_i(x, sigma)
        target = D_x
        h = math.log(sigma / sigma_next) if sigma_next > 0 and sigma < math.inf else math.inf
        if D_before is not None and h < math.inf:
            target = D_x + (D_x - D_before) * (h / (2 * h_before))
        x = _euler(x, target, sigma, sigma_next)
        D_before, h_before = D_x, h
        yield State(i, sigma_next, x, D_x)


euler = Solver(euler_steps)
"""Euler's method, first order: :func:`euler_steps`."""
heun = Solver(heun_steps, options=("S_churn", "S_min", "S_max", "S_noise"), draws_noise=True)
"""Heun's method, second order: :func:`heun_steps`."""
dpmpp_2m = Solver(dpmpp_2m_steps)
"""DPM-Solver++(2M), second order: :func:`dpmpp_2m_steps`."""
