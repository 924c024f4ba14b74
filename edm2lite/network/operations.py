"""Magnitude-preserving operations without parameters: activations, sums, resampling.

Each gives features of magnitude 1 where its inputs have magnitude 1. Equations are those of arXiv
2312.02696.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from edm2lite.network.kernels.convolution import double_pixels
from edm2lite.network.kernels.unit_rms import unit_rms

SILU_RMS = 0.596
"""RMS of silu(z) for z ~ N(0, 1), rounded as in the reference implementation (Eq. 81)."""


def pixel_norm(x: Tensor) -> Tensor:
    """[N, C, H, W] with the channel vector of every pixel divided by its RMS (Eq. 30).

    Example:
        >>> y = pixel_norm(torch.randn(2, 8, 4, 4) * 40)
        >>> y.square().mean(1).sqrt()[0, 0]
        tensor([1.0000, 1.0000, 1.0000, 1.0000])
    """
    return unit_rms(x, dim=1)


def mp_silu(x: Tensor) -> Tensor:
    """``silu(x) / 0.596``, of RMS 1 for x ~ N(0, 1) (Eq. 81).

    Example:
        >>> mp_silu(torch.tensor([0.0, 2.0]))
        tensor([0.0000, 2.9557])
    """
    return F.silu(x) / SILU_RMS


def mp_shares(t: float) -> tuple[float, float]:
    """Factors of a and b in :func:`mp_sum`; their squares add up to 1.

    Example:
        >>> mp_shares(0.5)
        (0.7071067811865475, 0.7071067811865475)
    """
    norm = math.sqrt((1 - t) ** 2 + t**2)
    return (1 - t) / norm, t / norm


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """``((1-t) a + t b) / sqrt((1-t)**2 + t**2)``, of the magnitude of unrelated a, b (Eq. 88).

    Example:
        >>> mp_sum(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), t=0.3)
        tensor([0.9191, 0.3939])
    """
    share_a, share_b = mp_shares(t)
    return torch.add(a * share_a, b, alpha=share_b)


def mp_sum_of_shares(a: Tensor, b: Tensor, t: float) -> Tensor:
    """:func:`mp_sum` where b carries its share ``t / sqrt((1-t)**2 + t**2)`` already.

    The layer that b comes from has the share in its weights, see Note [folded factors] in
    :mod:`edm2lite.network.block`.

    Example:
        >>> a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
        >>> mp_sum_of_shares(a, b * mp_shares(0.3)[1], t=0.3).equal(mp_sum(a, b, t=0.3))
        True
    """
    return torch.add(b, a, alpha=mp_shares(t)[0])


def mp_join(a: Tensor, b: Tensor, phi: Tensor) -> Tensor:
    """``cos(phi) a + sin(phi) b``, of magnitude 1 for unrelated a and b and every angle.

    At an angle of 0 the result is a, and yet the angle has a gradient, b: a branch b that begins
    silent learns from the first step on. An :func:`mp_sum` whose share is t has the angle
    ``atan(t / (1 - t))``.

    Args:
        a: Features of magnitude 1.
        b: Features of magnitude 1.
        phi: Angles in float32, of a shape that broadcasts.

    Example:
        >>> a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
        >>> mp_join(a, b, torch.tensor(0.3 / 0.7).atan()).allclose(mp_sum(a, b, t=0.3))
        True
    """
    return a * phi.cos().to(a.dtype) + b * phi.sin().to(a.dtype)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Channels of a and b side by side, scaled so that b has the share t of the sum (Eq. 103).

    At t = 0.5 both contribute equally to the next layer whatever their channel counts.

    Args:
        a: [N, C_a, ...] features of magnitude 1.
        b: [N, C_b, ...] features of magnitude 1.
        t: Share of b, in [0, 1].

    Returns:
        [N, C_a + C_b, ...], of magnitude 1.

    Example:
        >>> mp_cat(torch.ones(1, 768), torch.ones(1, 576), t=0.5)[0, [0, -1]]
        tensor([0.9354, 1.0801])
    """
    num_a, num_b = a.shape[1], b.shape[1]
    scale = math.sqrt((num_a + num_b) / ((1 - t) ** 2 + t**2))
    factors = scale * (1 - t) / math.sqrt(num_a), scale * t / math.sqrt(num_b)
    if all(math.isclose(factor, 1) for factor in factors):  # equal widths at t = 0.5
        return torch.cat([a, b], 1)
    return torch.cat([a * factors[0], b * factors[1]], 1)


def downsample(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, H/2, W/2], the mean of each 2x2 square.

    Example:
        >>> downsample(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
        tensor([[[[2.5000]]]])
    """
    return F.avg_pool2d(x, 2)


def upsample(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, 2H, 2W], each pixel copied to a 2x2 square.

    Example:
        >>> upsample(torch.ones(1, 3, 4, 4)).shape
        torch.Size([1, 3, 8, 8])
    """
    return double_pixels(x)
