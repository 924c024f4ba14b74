"""Images as sequences of patches, and where the patches lie.

Positions are computed for the size of the image. In the middle of the image lies the middle of the
training images; neighbors are ``side / sqrt(height * width)`` apart, in patches, so that a patch is
as high as wide and images of equal area have a distance of 1, whatever their aspect. At the
training resolution positions are 0, 1, 2, ...
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def patchify(x: Tensor, size: int) -> Tensor:
    """[N, C, H, W] -> [N, T, C size size]: rows of patches, values in the order (C, row, column).

    Example:
        >>> patchify(torch.arange(8.0).reshape(1, 1, 2, 4), size=2)
        tensor([[[0., 1., 4., 5.],
                 [2., 3., 6., 7.]]])
    """
    return F.pixel_unshuffle(x, size).flatten(2).transpose(1, 2)


def unpatchify(tokens: Tensor, size: int, height: int, width: int) -> Tensor:
    """The inverse of :func:`patchify`, for an image of ``height`` by ``width`` patches.

    Example:
        >>> x = torch.randn(2, 3, 4, 8)
        >>> unpatchify(patchify(x, 2), 2, height=2, width=4).equal(x)
        True
    """
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height, width)), size)


def positions(height: int, width: int, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns of patches, float64.

    Args:
        height: Number of patches from top to bottom.
        width: Number of patches from left to right.
        side: Number of patches along each side of the training images.
        device: Device of the result.

    Returns:
        [height] and [width].

    Example:
        >>> rows, columns = positions(1, 4, side=2, device=torch.device("cpu"))
        >>> rows, columns
        (tensor([0.5000], dtype=torch.float64), tensor([-1.,  0.,  1.,  2.], dtype=torch.float64))
    """
    distance, middle = side / math.sqrt(height * width), (side - 1) / 2
    rows, columns = (
        (torch.arange(n, dtype=torch.float64, device=device) - (n - 1) / 2) * distance + middle
        for n in (height, width)
    )
    return rows, columns


def angles(positions: Tensor, num: int, base: float) -> Tensor:
    """``p base**(-k/num)`` for k < num: [L] -> [L, num] float64.

    Example:
        >>> angles(torch.tensor([2.0]).double(), num=2, base=100)
        tensor([[2.0000, 0.2000]], dtype=torch.float64)
    """
    k = torch.arange(num, dtype=torch.float64, device=positions.device)
    return positions[:, None] * base ** (-k / num)


def _on_grid(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Features [height, A] of rows and [width, B] of columns for every patch, [T, A] and [T, B]."""
    height, width = len(rows), len(columns)
    return (
        rows[:, None].expand(-1, width, -1).flatten(0, 1),
        columns[None].expand(height, -1, -1).flatten(0, 1),
    )


def sine_positions(
    height: int, width: int, side: int, channels: int, device: torch.device
) -> Tensor:
    """The fixed positions of DiT: sines and cosines of the column, then those of the row.

    Each half has K = channels / 4 sines, then as many cosines, of frequencies ``10000**(-k / K)``.

    Args:
        height: Number of patches from top to bottom.
        width: Number of patches from left to right.
        side: Number of patches along each side of the training images.
        channels: Number of channels, a multiple of 4.
        device: Device of the result.

    Returns:
        [T, channels] float32.

    Example:
        >>> sine_positions(2, 2, side=2, channels=4, device=torch.device("cpu"))
        tensor([[0.0000, 1.0000, 0.0000, 1.0000],
                [0.8415, 0.5403, 0.0000, 1.0000],
                [0.0000, 1.0000, 0.8415, 0.5403],
                [0.8415, 0.5403, 0.8415, 0.5403]])
    """
    rows, columns = _on_grid(
        *(
            torch.cat([a.sin(), a.cos()], 1)
            for p in positions(height, width, side, device)
            for a in [angles(p, channels // 4, 10000)]
        )
    )
    return torch.cat([columns, rows], 1).float()


POSITION_CHANNELS = 8
"""Number of channels of :func:`position_channels`."""


def position_channels(height: int, width: int, side: int, device: torch.device) -> Tensor:
    """Where each patch lies, as a few channels beside its pixels, together of magnitude 1.

    With u = pi (p + 1/2) / side of row and column: ``sqrt(2)`` times cosine and sine of u and u/2.

    Args:
        height: Number of patches from top to bottom.
        width: Number of patches from left to right.
        side: Number of patches along each side of the training images.
        device: Device of the result.

    Returns:
        [T, 8] float32.

    Example:
        >>> channels = position_channels(4, 4, side=4, device=torch.device("cpu"))
        >>> channels.square().mean(1)[:2]
        tensor([1.0000, 1.0000])
    """
    rows, columns = _on_grid(
        *(
            torch.cat([a.cos(), a.sin()], 1) * math.sqrt(2)
            for p in positions(height, width, side, device)
            for a in [angles(p + 0.5, 2, base=4) * (math.pi / side)]
        )
    )
    return torch.cat([rows, columns], 1).float()


def rotations(height: int, width: int, side: int, channels: int, device: torch.device) -> Tensor:
    """Angles by which :func:`rotate` turns queries and keys: those of the row, those of the column.

    Args:
        height: Number of patches from top to bottom.
        width: Number of patches from left to right.
        side: Number of patches along each side of the training images.
        channels: Number of channels of a head, a multiple of 4.
        device: Device of the result.

    Returns:
        [T, channels / 2] float32.

    Example:
        >>> rotations(1, 2, side=2, channels=4, device=torch.device("cpu")).shape
        torch.Size([2, 2])
    """
    rows, columns = _on_grid(
        *(angles(p, channels // 4, 100) for p in positions(height, width, side, device))
    )
    return torch.cat([rows, columns], 1).float()


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Channels i and i + C/2 turned by an angle, which keeps the magnitude (arXiv 2104.09864).

    Products of queries and keys that are turned so depend on the difference of their positions.

    Args:
        x: [..., T, C].
        angles: [T, C / 2].

    Returns:
        [..., T, C] in the dtype of ``x``.

    Example:
        >>> rotate(torch.tensor([[1.0, 0.0]]), torch.tensor([[torch.pi / 2]])).round()
        tensor([[-0., 1.]])
    """
    a, b = x.chunk(2, dim=-1)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
