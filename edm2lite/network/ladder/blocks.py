"""The residual blocks of configs A to F, each the difference from the one before.

- A, B: ADM: GroupNorm, biases, scale and shift by the embedding, last layer of a branch zero.
- C: no bias, no shift, no zero layer; groups of RMS 1; queries, keys and values of RMS 1.
- D: weights are normalized on use.
- E: weights keep the length 1 too.
- F: no groups; pixel norm where the encoder enters; resampling and widening on the main path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from edm2lite.network.kernels.unit_rms import unit_rms
from edm2lite.network.ladder.layers import (
    FreeMPConv,
    GroupNorm,
    GroupRMS,
    PlainConv,
    attended,
    dropped,
    heads,
    wide,
)
from edm2lite.network.layers import MPConv
from edm2lite.network.operations import downsample, pixel_norm, upsample
from edm2lite.network.wiring import Place, UNetShape


def keep(x: Tensor) -> Tensor:
    """``x`` itself."""
    return x


RESAMPLE: dict[str, Callable[[Tensor], Tensor]] = {
    "keep": keep,
    "down": downsample,
    "up": upsample,
}


class BlockA(nn.Module):
    """The block of ADM (Fig. 17): norm, silu, convolution, twice, and attention, summed plainly.

    Args:
        place: Place of the block in the network.
        flavor: Side that it stands on, which matters to F alone.
        config: Configuration of the network.

    Example:
        >>> import torch
        >>> from edm2lite.network.unet import UNetConfig
        >>> shape = UNetConfig(img_resolution=8, img_channels=1, model_channels=64)
        >>> block = BlockA(Place("4x4_down", 16, 16, "down"), "enc", shape)
        >>> block(torch.randn(2, 16, 8, 8), torch.randn(2, shape.emb_channels)).shape
        torch.Size([2, 16, 4, 4])
    """

    modulations: ClassVar[int] = 2
    """Numbers by which the embedding modulates a channel."""

    @staticmethod
    def layer(
        in_channels: int, out_channels: int, kernel: tuple[int, ...] = (), *, last: bool = False
    ) -> nn.Module:
        """A learned layer; ``last`` are those that end a branch, or the network."""
        return PlainConv(in_channels, out_channels, kernel, init="zero" if last else "uniform")

    @staticmethod
    def norm(channels: int) -> nn.Module:
        """What groups of channels are normalized by."""
        return GroupNorm(channels)

    def __init__(self, place: Place, flavor: Literal["enc", "dec"], config: UNetShape):
        super().__init__()
        self.flavor, self.dropout, self.takes_skip = flavor, config.dropout, place.takes_skip
        self.resample = RESAMPLE[place.resample]
        self.num_heads = place.out_channels // config.head_channels if place.attention else 0
        self.build(place.in_channels, place.out_channels, config.emb_channels)

    def build(self, in_channels: int, out_channels: int, emb_channels: int) -> None:
        """Add the layers."""
        self.norm0 = self.norm(in_channels)
        self.conv_res0 = self.layer(in_channels, out_channels, (3, 3))
        self.emb_linear = self.layer(emb_channels, self.modulations * out_channels)
        self.norm1 = self.norm(out_channels)
        self.conv_res1 = self.layer(out_channels, out_channels, (3, 3), last=True)
        self.conv_skip = (
            self.layer(in_channels, out_channels, (1, 1))
            if in_channels != out_channels
            else nn.Identity()
        )
        if self.num_heads:
            self.build_attention(out_channels)

    def build_attention(self, channels: int) -> None:
        """Add the layers of the attention."""
        self.attn_norm = self.norm(channels)
        self.attn_qkv = self.layer(channels, 3 * channels, (1, 1))
        self.attn_proj = self.layer(channels, channels, (1, 1), last=True)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """The output of the block.

        Args:
            x: [N, C_in, H, W] features.
            emb: [N, C_emb] float32 embedding.

        Returns:
            [N, C_out, H', W'] in the dtype of ``x``.
        """
        y = self.conv_res0(self.resample(F.silu(self.norm0(x))))
        y = F.silu(self.modulate(self.norm1(y), self.emb_linear(emb)))
        y = self.conv_res1(dropped(y, self.dropout, self.training))
        x = self.conv_skip(self.resample(x)) + y
        return x + self.attention(x) if self.num_heads else x

    def modulate(self, y: Tensor, told: Tensor) -> Tensor:
        """``y (1 + scale) + shift`` per channel, with scale and shift from the embedding."""
        scale, shift = told.to(y.dtype)[:, :, None, None].chunk(2, dim=1)
        return y * (1 + scale) + shift

    def attention(self, x: Tensor) -> Tensor:
        """What self-attention over the pixels adds to ``x``, computed in float32."""
        q, k, v = heads(wide(self.attn_qkv(self.attn_norm(x))), self.num_heads)
        return self.projected(attended(q, k, v, x.shape).to(x.dtype))

    def projected(self, y: Tensor) -> Tensor:
        """The last layer of the attention."""
        result: Tensor = self.attn_proj(y)
        return result


class BlockC(BlockA):
    """No bias, no shift, no layer that starts at zero; norms only divide (Fig. 18)."""

    modulations = 1

    @staticmethod
    def layer(
        in_channels: int, out_channels: int, kernel: tuple[int, ...] = (), *, last: bool = False
    ) -> nn.Module:
        """A learned layer; all are alike."""
        return PlainConv(in_channels, out_channels, kernel, bias=False)

    @staticmethod
    def norm(channels: int) -> nn.Module:
        """What groups of channels are normalized by."""
        return GroupRMS(channels)

    def build_attention(self, channels: int) -> None:
        """Add the layers of the attention, which has no norm before them."""
        self.attn_qkv = self.layer(channels, 3 * channels, (1, 1))
        self.attn_proj = self.layer(channels, channels, (1, 1), last=True)

    def modulate(self, y: Tensor, told: Tensor) -> Tensor:
        """``y (1 + scale)`` per channel."""
        return y * (1 + told).to(y.dtype)[:, :, None, None]

    def attention(self, x: Tensor) -> Tensor:
        """What cosine attention adds to ``x``: queries, keys and values have RMS 1 (Eq. 30)."""
        q, k, v = (unit_rms(part, dim=3) for part in heads(self.attn_qkv(x), self.num_heads))
        return self.projected(attended(q, k, v, x.shape))


class BlockD(BlockC):
    """Weights are normalized on use (Fig. 19, Eq. 47)."""

    layer_class: ClassVar[type[MPConv]] = FreeMPConv

    @classmethod
    def layer(
        cls,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, ...] = (),
        *,
        last: bool = False,
    ) -> nn.Module:
        """A learned layer; all are alike."""
        return cls.layer_class(in_channels, out_channels, kernel)


class BlockE(BlockD):
    """Weights keep the length 1 (Fig. 20, Eq. 66)."""

    layer_class = MPConv


class BlockF(BlockE):
    """No groups (Fig. 21): pixel norm where the encoder enters, resampling on the main path."""

    def build(self, in_channels: int, out_channels: int, emb_channels: int) -> None:
        """Add the layers."""
        res_in = out_channels if self.flavor == "enc" else in_channels
        self.conv_res0 = self.layer(res_in, out_channels, (3, 3))
        self.emb_linear = self.layer(emb_channels, out_channels)
        self.conv_res1 = self.layer(out_channels, out_channels, (3, 3), last=True)
        self.conv_skip = (
            self.layer(in_channels, out_channels, (1, 1))
            if in_channels != out_channels
            else nn.Identity()
        )
        if self.num_heads:
            self.build_attention(out_channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """The output of the block, see :meth:`BlockA.forward`."""
        x = self.resample(x)
        if self.flavor == "enc":
            x = pixel_norm(self.conv_skip(x))
        y = self.conv_res0(F.silu(x))
        y = F.silu(self.modulate(y, self.emb_linear(emb)))
        y = self.conv_res1(dropped(y, self.dropout, self.training))
        x = y + (self.conv_skip(x) if self.flavor == "dec" else x)
        return x + self.attention(x) if self.num_heads else x
