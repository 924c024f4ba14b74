"""The residual block of the EDM2 U-Net, in its two flavors (arXiv 2312.02696, Figs. 21 and 22).

Note [folded factors]. ``mp_silu`` divides by 0.596 and ``mp_sum`` multiplies both terms by
constants. A constant factor on the input or output of a layer can as well be in its weights, which
are small, where features are large. So the block runs a plain ``silu``, whose factor is in the
layer that follows (``in_rms=SILU_RMS``), and a residual branch has its share of the sum in its last
layer (``out_rms``), which :func:`edm2lite.network.operations.mp_sum_of_shares` takes into account.
The magnitude of such a branch is its share, everything else has magnitude 1.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2lite.network.attention import QKVConv, cosine_attention
from edm2lite.network.kernels.recompute import clip, modulated_silu
from edm2lite.network.layers import MPConv, MPUpConv
from edm2lite.network.operations import (
    SILU_RMS,
    downsample,
    mp_shares,
    mp_sum_of_shares,
    pixel_norm,
    upsample,
)
from edm2lite.network.text import PixelTextAttention, Text


class Block(nn.Module):
    """One residual block of the encoder or the decoder, with optional resampling and attention.

    Args:
        in_channels: Number of channels of the input, skip connection included.
        out_channels: Number of channels of the output.
        emb_channels: Length of the embedding that modulates the block.
        flavor: ``enc`` widens the main path and normalizes its pixels at the entry, ``dec`` widens
            it beside the residual branch.
        resample: What happens to the resolution at the entry.
        num_heads: Number of heads of the self-attention after the convolutions; 0 for none.
        text_attn: Attention to the tokens of a text after that; None for none.
        takes_skip: Whether the network joins the input with a skip connection of the encoder.
        res_balance: Share t of the residual branch in its sum with the main path.
        attn_balance: Share t of the attention in its sum with the main path.
        dropout: Probability of dropout within the residual branch.
        clip_act: Limit of the absolute value of the output.

    Example:
        >>> block = Block(32, 64, emb_channels=16, flavor="enc", resample="down", num_heads=1)
        >>> block(torch.randn(2, 32, 8, 8), torch.randn(2, 16)).shape
        torch.Size([2, 64, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        emb_channels: int,
        flavor: Literal["enc", "dec"],
        resample: Literal["keep", "up", "down"] = "keep",
        num_heads: int = 0,
        text_attn: PixelTextAttention | None = None,
        takes_skip: bool = False,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        dropout: float = 0.0,
        clip_act: float = 256.0,
    ):
        super().__init__()
        self.flavor, self.resample, self.takes_skip = flavor, resample, takes_skip
        self.num_heads, self.dropout, self.clip_act = num_heads, dropout, clip_act
        self.res_balance, self.attn_balance = res_balance, attn_balance
        res_in = out_channels if flavor == "enc" else in_channels
        res_share, attn_share = mp_shares(res_balance)[1], mp_shares(attn_balance)[1]
        # in_rms and out_rms: see Note [folded factors]
        self.emb_gain = nn.Parameter(torch.zeros(1))
        self.conv_res0 = (
            MPUpConv(res_in, out_channels, in_rms=SILU_RMS)
            if resample == "up"
            else MPConv(res_in, out_channels, (3, 3), in_rms=SILU_RMS)
        )
        self.emb_linear = MPConv(emb_channels, out_channels)
        self.conv_res1 = MPConv(
            out_channels, out_channels, (3, 3), in_rms=SILU_RMS, out_rms=res_share
        )
        self.conv_skip = (
            MPConv(in_channels, out_channels, (1, 1)) if in_channels != out_channels else None
        )
        self.attn_qkv = QKVConv(out_channels, num_heads) if num_heads else None
        self.attn_proj = (
            MPConv(out_channels, out_channels, (1, 1), out_rms=attn_share) if num_heads else None
        )
        self.text_attn = text_attn

    def forward(self, x: Tensor, emb: Tensor, text: Text | None = None) -> Tensor:
        """The output of the block.

        Args:
            x: [N, C_in, H, W] features.
            emb: [N, C_emb] float32 embedding.
            text: Tokens of a text, where the block attends to them.

        Returns:
            [N, C_out, H', W'] in the dtype of ``x``.
        """
        if self.resample == "down":
            x = downsample(x)
        if self.flavor == "enc":
            x = pixel_norm(self._widen(x))
        y = self.conv_res0(F.silu(x))  # of an "up" block: the convolution of upsample(silu(x))
        if self.resample == "up":
            x = upsample(x)
        y = modulated_silu(y, scale=self.emb_linear(emb, gain=self.emb_gain) + 1)
        y = self.conv_res1(self._drop(y))
        if self.flavor == "dec":
            x = self._widen(x)
        x = mp_sum_of_shares(x, y, self.res_balance)
        if self.attn_qkv is not None and self.attn_proj is not None:
            y = self.attn_proj(cosine_attention(self.attn_qkv(x), self.num_heads))
            x = mp_sum_of_shares(x, y, self.attn_balance)
        if self.text_attn is not None:
            x = self.text_attn(x, text)
        return clip(x, self.clip_act)

    def _widen(self, x: Tensor) -> Tensor:
        return x if self.conv_skip is None else self.conv_skip(x)

    def _drop(self, y: Tensor) -> Tensor:
        return F.dropout(y, self.dropout, self.training) if self.dropout else y
