"""ControlNet for the magnitude-preserving U-Net: a second encoder that follows an image.

A copy of the encoder sees the noisy image and, beside it, a hint: outlines, a sketch, depth. What
it makes at each place joins the skip connection that the decoder takes there, and its last output
the features that the decoder begins with (arXiv 2302.05543, with joins in place of sums):

    f = cos(phi) skip + sin(phi) y,    skip <- |skip| / |f| f

with y a 1x1 convolution of the copy's features. The angles are 0 at the start, so that the network
is the one without control, bit for bit. A strength s multiplies the angles. Features of a copy are
related to those of the encoder, so f would not keep magnitude 1 by itself: every pixel is given the
length that it had. The hint joins the copy's first features by angles that begin at
:data:`HINT_ANGLE`: at 0 the layers of the hint would wait for the third step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edm2lite.network.conditions import ConditionImage
from edm2lite.network.layers import MPConv
from edm2lite.network.operations import mp_join, mp_silu

HINT_ANGLE = math.atan(0.3 / 0.7)
"""Angle of the hint at the start: the share of a residual branch, t = 0.3."""

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, kw_only=True)
class Control:
    """An image that a network follows.

    Attributes:
        name: Name of the condition, which is also that of its tensors.
        channels: Number of channels of the image.

    Raises:
        ValueError: If the name is no identifier, or there are no channels.

    Example:
        >>> Control(channels=3).condition
        ConditionImage(channels=3, name='image')
    """

    name: str = "image"
    channels: int = 1

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"controls.name must be an identifier, got {self.name!r}")
        if not 1 <= self.channels <= 65536:
            raise ValueError(f"controls.channels must be from 1 to 65536, got {self.channels}")

    @property
    def condition(self) -> ConditionImage:
        """What the network is told."""
        return ConditionImage(self.channels, self.name)


class Join(nn.Module):
    """``cos(phi) x + sin(phi) y`` of the length of x, with y a 1x1 convolution of other features.

    Every pixel keeps its L2 norm over channels; the angles phi are 0 at the start.

    Args:
        width: Number of channels.

    Example:
        >>> join, x = Join(8), torch.randn(1, 8, 4, 4)
        >>> join(x, torch.randn(1, 8, 4, 4)).equal(x)
        True
    """

    def __init__(self, width: int):
        super().__init__()
        self.conv = MPConv(width, width, (1, 1))
        self.angles = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """[N, C, H, W], of the magnitude of ``x``."""
        joined = mp_join(x, self.conv(features), self.angles[:, None, None])
        before, after = (_lengths(y) for y in (x, joined))
        return joined * (before / after.clamp_min(_TINY)).to(x.dtype)


class ControlBranch(nn.Module):
    """The copy of an encoder, the layers of the hint, and the joins into the skip connections.

    Args:
        channels: Number of channels of the hint.
        stem: First convolution of the copy.
        blocks: Blocks of the copy by their names.
        widths: Number of channels of the output of ``stem`` and of each block.
        levels: Number of times that the resolution of each of them has been halved.

    Example:
        >>> stem = MPConv(4, 8, (3, 3))
        >>> branch = ControlBranch(1, stem, {}, [8], [0])
        >>> x, skip = torch.randn(2, 4, 8, 8), torch.randn(2, 8, 8, 8)
        >>> skips, last = branch(x, (), torch.randn(2, 1, 8, 8), [skip])
        >>> skips[0].equal(skip), last.equal(skip)  # the angles are 0 at the start
        (True, True)
    """

    def __init__(
        self,
        channels: int,
        stem: MPConv,
        blocks: Mapping[str, nn.Module],
        widths: Sequence[int],
        levels: Sequence[int],
    ):
        super().__init__()
        self.levels = [*levels, levels[-1]]
        self.hint0 = MPConv(channels + 1, widths[0], (3, 3))  # ones, in place of biases
        self.hint1 = MPConv(widths[0], widths[0], (3, 3))
        self.hint_phi = nn.Parameter(torch.full((widths[0],), HINT_ANGLE))
        self.stem, self.enc = stem, nn.ModuleDict(blocks)
        # the last one is where the decoder begins
        self.joins = nn.ModuleList(Join(width) for width in [*widths, widths[-1]])

    def forward(
        self, x: Tensor, told: tuple[Tensor, ...], hint: Tensor, skips: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """The skip connections and the start of the decoder, each with its share of the control.

        Args:
            x: [N, C, H, W], input of the first convolution of the encoder.
            told: What every block is told besides, as the blocks of the encoder are.
            hint: [N, channels, H, W] of unit variance.
            skips: Outputs of the encoder, in their order.
        """
        hint = torch.cat([hint.to(x.dtype), torch.ones_like(x[:, :1])], dim=1)
        y = self.hint1(mp_silu(self.hint0(hint)))
        y = mp_join(self.stem(x), y, self.hint_phi[:, None, None])
        features = [y]
        for block in self.enc.values():
            y = block(y, *told)
            features.append(y)
        skips, features = [*skips, skips[-1]], [*features, y]
        joined = [join(x, y) for join, x, y in zip(self.joins, skips, features, strict=True)]
        return joined[:-1], joined[-1]

    @torch.no_grad()
    def weigh_by_resolution_(self) -> None:
        """Multiply angles by 1, 2, 4, ... from full resolution downwards, in place.

        The control then decides what is large and leaves fine detail to the network (the resolution
        weights of ControlNet).
        """
        for join, level in zip(self.joins, self.levels, strict=True):
            assert isinstance(join, Join)
            join.angles.mul_(2**level)

    def blocks(self) -> list[nn.Module]:
        """The residual blocks of the copy."""
        return list(self.enc.values())

    def copy_encoder_(self, enc: nn.ModuleDict) -> None:
        """Take over the weights of the encoder that this one begins as a copy of, in place.

        Args:
            enc: Encoder of the network, its first convolution first.
        """
        stem, *blocks = enc.values()
        for own, other in zip((self.stem, *self.enc.values()), (stem, *blocks), strict=True):
            own.load_state_dict(other.state_dict())


def _lengths(x: Tensor) -> Tensor:
    """[N, 1, H, W] float32, the L2 norm of every pixel."""
    lengths: Tensor = torch.linalg.vector_norm(x.float(), dim=1, keepdim=True)
    return lengths
