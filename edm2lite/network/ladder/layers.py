"""What the layers of configs A to F do: weights as they are stored, groups of channels, attention.

Equations are those of arXiv 2312.02696, and so are the letters of the configs.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2lite.network.attention import attend
from edm2lite.network.kernels.convolution import convolve
from edm2lite.network.kernels.unit_rms import unit_rms
from edm2lite.network.layers import MPConv, MPFourier

Init = Literal["uniform", "normal", "zero"]


class PlainConv(nn.Module):
    """Linear layer or convolution that computes with its weights as they are stored (A to C).

    Args:
        in_channels: Number of channels of the input.
        out_channels: Number of channels of the output.
        kernel: () for a linear layer on [..., C], (k, k) with odd k for a convolution.
        bias: Whether a bias is added.
        init: Distribution of initial weights: uniform in +-1 / sqrt(fan_in), as the bias is too;
            standard normal; or all zero, the bias included.

    Example:
        >>> layer = PlainConv(64, 128, (3, 3))
        >>> layer(torch.randn(2, 64, 8, 8)).shape, bool(layer.weight.abs().max() <= 1 / 24)
        (torch.Size([2, 128, 8, 8]), True)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, ...] = (),
        *,
        bias: bool = True,
        init: Init = "uniform",
    ):
        super().__init__()
        bound = 0.0 if init == "zero" else 1 / math.sqrt(in_channels * math.prod(kernel))
        weight = torch.empty(out_channels, in_channels, *kernel)
        self.weight = nn.Parameter(
            weight.normal_() if init == "normal" else weight.uniform_(-bound, bound)
        )
        self.bias = (
            nn.Parameter(torch.empty(out_channels).uniform_(-bound, bound)) if bias else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, ...] -> [N, C_out, ...] in the dtype of ``x``."""
        y = convolve(x, self.weight.to(x.dtype))
        if self.bias is None:
            return y
        return y + self.bias.to(x.dtype).reshape(-1, *[1] * (y.ndim - 2))


class FreeMPConv(MPConv):
    """A layer whose weights are normalized on use and keep whatever length they take on (D)."""

    has_fixed_length: ClassVar[bool] = False


class GroupNorm(nn.GroupNorm):
    """Mean 0 and variance 1 in every group of channels, then a scale and a bias per channel (A, B).

    Args:
        channels: Number of channels.
    """

    def __init__(self, channels: int):
        super().__init__(num_groups(channels), channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape and dtype, computed in at least float32."""
        return super().forward(wide(x)).to(x.dtype)


class GroupRMS(nn.Module):
    """RMS 1 in every group of channels, and nothing else (C to E, Eq. 29).

    Args:
        channels: Number of channels.

    Example:
        >>> y = GroupRMS(16)(torch.randn(2, 16, 8, 8) * 5 + 3)
        >>> y.unflatten(1, (4, 4)).square().mean((2, 3, 4))[0]
        tensor([1.0000, 1.0000, 1.0000, 1.0000])
    """

    def __init__(self, channels: int):
        super().__init__()
        self.num_groups = num_groups(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape and dtype."""
        groups = x.unflatten(1, (self.num_groups, -1))
        return unit_rms(groups, dim=(2, 3, 4)).flatten(1, 2)


def num_groups(channels: int) -> int:
    """Number of groups of channels: 32, or fewer so that a group has 4.

    Example:
        >>> num_groups(192), num_groups(96)
        (32, 24)
    """
    return min(32, channels // 4)


class Sinusoids(nn.Module):
    """Position encoding ``[cos(f x), sin(f x)]`` with ``f_i = 10000**(-i / (C/2))`` (A, B).

    Args:
        num_channels: Number of features C, even.

    Example:
        >>> Sinusoids(4)(torch.tensor([0.0, 1.0]))
        tensor([[1.0000, 1.0000, 0.0000, 0.0000],
                [0.5403, 0.9999, 0.8415, 0.0100]])
    """

    def __init__(self, num_channels: int):
        super().__init__()
        self.num_pairs = num_channels // 2

    def forward(self, x: Tensor) -> Tensor:
        """[N] -> [N, num_channels]."""
        index = torch.arange(self.num_pairs, device=x.device, dtype=x.dtype)
        angle = x.outer(10000 ** -(index / self.num_pairs))
        return torch.cat([angle.cos(), angle.sin()], 1)


class Fourier(MPFourier):
    """Random Fourier features ``cos(2 pi (f x + phi))``, whose mean square is 1/2 (C to F)."""

    def forward(self, x: Tensor) -> Tensor:
        """[N] -> [N, num_channels]."""
        return (x.outer(self.freqs.to(x.dtype)) + self.phases.to(x.dtype)).cos()


def heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of every head, each [N, heads, H * W, C_head].

    Args:
        qkv: [N, 3 * C, H, W], channels in the order (heads, C_head, 3).
        num_heads: Number of heads, a divisor of C.
    """
    parts = qkv.flatten(2).unflatten(1, (num_heads, -1, 3)).movedim(-1, 2)
    q, k, v = parts.unbind(-1)  # each [N, heads, HW, C_head]
    return q, k, v


def attended(q: Tensor, k: Tensor, v: Tensor, shape: torch.Size) -> Tensor:
    """What every head attends to, side by side as features of a shape [N, C, H, W]."""
    return attend(q, k, v).mT.reshape(shape)


def wide(x: Tensor) -> Tensor:
    """``x`` in at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def dropped(y: Tensor, probability: float, training: bool) -> Tensor:
    """Dropout, in training."""
    return F.dropout(y, probability, training) if probability else y
