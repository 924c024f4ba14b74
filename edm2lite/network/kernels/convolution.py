"""Which kernel computes a convolution; everything that decides it is in this file.

Layers call :func:`convolve` and :func:`convolve_upsampled`. Both call torch, except in compiled
graphs where Winograd's algorithm is faster. Weights that no longer change can also be packed
(:func:`pack`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from edm2lite.network.kernels.packed_conv import PackedConv, PackedUpConv, PackedWinograd
from edm2lite.network.kernels.winograd import winograd_conv2d, winograd_is_faster

Convolve = Callable[[Tensor, Tensor], Tensor]


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """``x`` convolved with ``weight``, zero padding keeping the size; a product for a matrix.

    Args:
        x: [N, C_in, H, W], or [..., C_in] for a matrix.
        weight: [C_out, C_in, k, k] with odd k, or a matrix [C_out, C_in].

    Returns:
        [N, C_out, H, W], or [..., C_out].

    Example:
        >>> convolve(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3))[0, 0]
        tensor([[4., 6., 4.],
                [6., 9., 6.],
                [4., 6., 4.]])
    """
    if weight.ndim == 2:
        return F.linear(x, weight)
    if torch.compiler.is_compiling() and winograd_is_faster(x, weight):
        return winograd_conv2d(x, weight)
    return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


def convolve_upsampled(x: Tensor, weight: Tensor) -> Tensor:
    """The 3x3 convolution of pixels copied to 2x2, computed before they are copied.

    Args:
        x: [N, C_in, H, W].
        weight: [C_in, C_out, 4, 4], sums of the 3x3 weights that meet the same pixel.

    Returns:
        [N, C_out, 2 H, 2 W].

    Example:
        >>> convolve_upsampled(torch.ones(1, 8, 4, 4), torch.ones(8, 2, 4, 4)).shape
        torch.Size([1, 2, 8, 8])
    """
    return F.conv_transpose2d(x, weight, stride=2, padding=1)


def pack(convolve_: Convolve, weight: Tensor, x: Tensor, compiled: bool) -> PackedConv | None:
    """The weight in the order of the kernel for inputs like ``x``, see :class:`PackedConv`.

    Args:
        convolve_: The function to replace, called as ``convolve_(x, weight)``.
        weight: The weight, which must not change afterwards.
        x: An input of the shape to come.
        compiled: Whether torch.compile will make a graph of the calls.

    Returns:
        The packed convolution, or None for a function that has none.

    Example:
        >>> weight, x = torch.randn(4, 8, 3, 3), torch.randn(2, 8, 16, 16)
        >>> type(pack(convolve, weight, x, compiled=False)).__name__
        'PackedConv'
    """
    if convolve_ is convolve_upsampled:
        return PackedUpConv(weight, x)
    if convolve_ is not convolve or weight.ndim == 2:
        return None
    by_winograd = compiled and winograd_is_faster(x, weight, prepared=True)
    return (PackedWinograd if by_winograd else PackedConv)(weight, x)


def double_pixels(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, 2 H, 2 W], each pixel copied to a 2x2 square.

    Example:
        >>> double_pixels(torch.tensor([[[[1., 2.]]]]))
        tensor([[[[1., 1., 2., 2.],
                  [1., 1., 2., 2.]]]])
    """
    if torch.compiler.is_compiling():  # copies that compile into loops, as an index does not
        n, c, h, w = x.shape
        pixels = x.permute(0, 2, 3, 1)[:, :, None, :, None]
        return pixels.expand(n, h, 2, w, 2, c).reshape(n, 2 * h, 2 * w, c).permute(0, 3, 1, 2)
    return F.interpolate(x, scale_factor=2, mode="nearest")
