"""Noise levels of a sampling run, from the first to 0, and the noise that it begins with."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from edm2lite.diffusion import ddpm
from edm2lite.diffusion.ddpm import Schedule


def karras_sigmas(
    num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    """Noise levels of EDM, ``(a + i/(N-1) (b - a))**rho`` for i from 0 to N-1, then 0 (EDM, Eq. 5).

    a and b are sigma_max and sigma_min to the power 1/rho.

    Args:
        num_steps: Number of steps N, at least 1; a single step goes from sigma_max to 0.
        sigma_min: Last positive level.
        sigma_max: First level.
        rho: Exponent; larger values take shorter steps near sigma_min.

    Returns:
        [N + 1] float64, decreasing, ending in 0.

    Raises:
        ValueError: If there is no step, or the levels are out of order or infinite.

    Example:
        >>> karras_sigmas(4)
        tensor([8.0000e+01, 9.7232e+00, 4.6998e-01, 2.0000e-03, 0.0000e+00],
               dtype=torch.float64)
    """
    _check_range(num_steps, sigma_min, sigma_max)
    if math.isinf(sigma_max):
        raise ValueError("sigma_max must be finite here; only cosine levels begin at infinity")
    return _with_zero(_ramp(num_steps, sigma_max ** (1 / rho), sigma_min ** (1 / rho)) ** rho)


def linear_sigmas(num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Tensor:
    """Noise levels at equal distances: :func:`karras_sigmas` with rho = 1.

    Args:
        num_steps: Number of steps N, at least 1.
        sigma_min: Last positive level.
        sigma_max: First level.

    Example:
        >>> linear_sigmas(3, sigma_min=1.0, sigma_max=3.0)
        tensor([3., 2., 1., 0.], dtype=torch.float64)
    """
    return karras_sigmas(num_steps, sigma_min, sigma_max, rho=1.0)


def cosine_sigmas(num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Tensor:
    """Noise levels of a cosine schedule: ``tan(angle)`` at equal distances of the angle, then 0.

    Args:
        num_steps: Number of steps N, at least 1.
        sigma_min: Last positive level.
        sigma_max: First level; may be infinite, see Note [sigma = infinity] in
            :mod:`edm2lite.sampling.solvers`.

    Returns:
        [N + 1] float64, decreasing, ending in 0.

    Raises:
        ValueError: If there is no step, or the levels are out of order.

    Example:
        >>> cosine_sigmas(2, sigma_min=1.0, sigma_max=math.inf)
        tensor([   inf, 1.0000, 0.0000], dtype=torch.float64)
    """
    _check_range(num_steps, sigma_min, sigma_max)
    sigmas = torch.tan(_ramp(num_steps, math.atan(sigma_max), math.atan(sigma_min)))
    sigmas[0] = sigma_max  # tan(atan(inf)) is 1.6e16
    return _with_zero(sigmas)


def trailing_sigmas(
    num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, *, beta: Schedule = "linear"
) -> Tensor:
    """Levels of DDPM's 1000 in even steps of their index, from the last one on (arXiv 2305.08891).

    Levels above ``sigma_max`` or below ``sigma_min`` are left out. Where ``sigma_max`` is infinite,
    the schedule is the one that ends in pure noise (zero terminal SNR).

    Args:
        num_steps: Number of steps N, 1 to the number of levels.
        sigma_min: Lowest level that may be used.
        sigma_max: Highest level that may be used; may be infinite.
        beta: Schedule of betas, see :func:`edm2lite.diffusion.ddpm.levels`.

    Returns:
        [N + 1] float64, decreasing, ending in 0.

    Raises:
        ValueError: If there are more steps than levels, or none.

    Example:
        >>> trailing_sigmas(4, sigma_max=math.inf)
        tensor([    inf, 19.2565,  3.4861,  0.9578,  0.0000], dtype=torch.float64)
    """
    _check_range(num_steps, sigma_min, sigma_max)
    found = ddpm.levels(beta, zero_terminal_snr=math.isinf(sigma_max))
    return ddpm.trailing_sigmas(found[(found >= sigma_min) & (found <= sigma_max)], num_steps)


def trailing_scaled_linear_sigmas(
    num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> Tensor:
    """:func:`trailing_sigmas` of the betas of Stable Diffusion.

    Args:
        num_steps: Number of steps N.
        sigma_min: Lowest level that may be used.
        sigma_max: Highest level that may be used; may be infinite.

    Example:
        >>> round(trailing_scaled_linear_sigmas(4)[0].item(), 2)
        14.61
    """
    return trailing_sigmas(num_steps, sigma_min, sigma_max, beta="scaled_linear")


def user_sigmas(levels: Sequence[float]) -> Tensor:
    """Noise levels of your own, checked, with the 0 at the end added where it is missing.

    Args:
        levels: Decreasing noise levels; the first may be infinite.

    Returns:
        [N + 1] float64.

    Raises:
        ValueError: If they do not decrease, or one is negative or not a number.

    Example:
        >>> user_sigmas([80, 20, 5])
        tensor([80., 20.,  5.,  0.], dtype=torch.float64)
    """
    sigmas = [float(level) for level in levels]
    sigmas += [0.0] if sigmas and sigmas[-1] > 0 else []
    if len(sigmas) < 2 or not all(a > b >= 0 for a, b in itertools.pairwise(sigmas)):
        raise ValueError(f"noise levels must decrease and be positive, got {list(levels)}")
    return torch.tensor(sigmas, dtype=torch.float64)


def sigmas_from(sigmas: Tensor, sigma: float) -> Tensor:
    """``sigma`` and the levels below it: image-to-image begins there, at image + sigma * noise.

    Args:
        sigmas: [N + 1] decreasing noise levels.
        sigma: Noise level to begin at; the lower, the closer the result is to the image.

    Raises:
        ValueError: If ``sigma`` is not positive.

    Example:
        >>> sigmas_from(user_sigmas([8, 4, 2]), 3.0)
        tensor([3., 2., 0.], dtype=torch.float64)
    """
    if not sigma > 0:
        raise ValueError(f"the level to start from must be positive, got {sigma}")
    return torch.cat([sigmas.new_tensor([sigma]), sigmas[sigmas < sigma]])


def first_state(noise: Tensor, sigmas: Tensor) -> Tensor:
    """X to begin with: noise of standard deviation ``sigmas[0]``, of 1 where that is infinite.

    Args:
        noise: [N, C, H, W] standard normal.
        sigmas: [N + 1] decreasing noise levels.

    Example:
        >>> first_state(torch.ones(2), karras_sigmas(4))
        tensor([80., 80.])
    """
    sigma = float(sigmas[0])
    return noise if math.isinf(sigma) else noise * sigma


def _ramp(num_steps: int, first: float, last: float) -> Tensor:
    return torch.linspace(first, last, num_steps, dtype=torch.float64)


def _with_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def _check_range(num_steps: int, sigma_min: float, sigma_max: float) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"need 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")


def interval_steps(sigmas: Tensor, low: float, high: float) -> tuple[int, int]:
    """First and last step of the interval (low, high] of noise levels, as guidance takes them.

    An interval can begin and end at the noise levels of a run only. Both bounds are therefore
    moved to the nearest one (by ratio): (0.28, 2.90] as papers print it, rounded, is (0.28304,
    2.90153] and means steps 15 to 21 of 32; comparing levels with the printed numbers would guide
    steps 16 to 22.

    Args:
        sigmas: [N + 1] noise levels of the run.
        low: Lower bound, at least 0, exclusive.
        high: Upper bound, inclusive; may be infinite.

    Raises:
        ValueError: If the bounds are out of order, or both are nearest to the same level.

    Example:
        >>> interval_steps(karras_sigmas(32), 0.28, 2.90)
        (15, 21)
    """
    if not 0 <= low < high:
        raise ValueError(f"an interval must be low,high with 0 <= low < high, got {low:g},{high:g}")
    first, end = _nearest(sigmas, high), _nearest(sigmas, low)
    if first >= end:
        raise ValueError(
            f"the interval ({low:g}, {high:g}] must hold a step, but both ends are nearest to the"
            f" noise level {float(sigmas[first]):.4g}; widen it or take more steps"
        )
    return first, end - 1


def _nearest(sigmas: Tensor, level: float) -> int:
    if level == 0:
        return len(sigmas) - 1
    if math.isinf(level):
        return 0
    return int((sigmas.double() / level).log().abs().argmin())
