"""The magnitude-preserving U-Net of EDM2, config G: ``F(x, c_noise, labels)``.

Wiring (paper, Figs. 21 and 22): an encoder of residual blocks whose every output is kept, a decoder
that takes them back in reverse order by MP-Cat, attention at the low resolutions, one embedding of
noise level and class that modulates every block. Tensor names follow the released EDM2 networks.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2lite.network.attention import QKVConv, cosine_attention
from edm2lite.network.kernels.recompute import clip, modulated_silu
from edm2lite.network.layers import (
    SILU_RMS,
    MPConv,
    MPFourier,
    MPUpConv,
    downsample,
    mp_cat,
    mp_shares,
    mp_silu,
    mp_sum,
    pixel_norm,
    upsample,
)
from edm2lite.network.unet_config import UNetConfig


class Block(nn.Module):
    """One residual block of the encoder or the decoder, with optional resampling and attention.

    Args:
        config: Of the whole network.
        in_channels: Width of the input.
        out_channels: Width of the output.
        flavor: The encoder normalises pixels, and widens on the main path first.
        resample: What happens to the resolution at the entry.
        attention: Whether self-attention follows the convolutions.
    """

    def __init__(
        self,
        config: UNetConfig,
        in_channels: int,
        out_channels: int,
        flavor: Literal["enc", "dec"],
        resample: Literal["keep", "up", "down"] = "keep",
        attention: bool = False,
    ):
        super().__init__()
        self.config, self.flavor, self.resample = config, flavor, resample
        self.num_heads = out_channels // config.head_channels if attention else 0
        res_in = out_channels if flavor == "enc" else in_channels
        # The factors of mp_silu and mp_sum are in the weights of the layer after and before.
        self.res_keep, res_share = mp_shares(config.res_balance)
        self.attn_keep, attn_share = mp_shares(config.attn_balance)
        self.emb_gain = nn.Parameter(torch.zeros(1))
        self.conv_res0 = (
            MPUpConv(res_in, out_channels, in_rms=SILU_RMS)
            if resample == "up"
            else MPConv(res_in, out_channels, (3, 3), in_rms=SILU_RMS)
        )
        self.emb_linear = MPConv(config.emb_channels, out_channels)
        self.conv_res1 = MPConv(
            out_channels, out_channels, (3, 3), in_rms=SILU_RMS, out_rms=res_share
        )
        self.conv_skip = (
            MPConv(in_channels, out_channels, (1, 1)) if in_channels != out_channels else None
        )
        self.attn_qkv = QKVConv(out_channels, self.num_heads) if attention else None
        self.attn_proj = (
            MPConv(out_channels, out_channels, (1, 1), out_rms=attn_share) if attention else None
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """X [N, C_in, H, W], emb [N, C_emb] float32 -> [N, C_out, H', W'] in the dtype of x."""
        if self.resample == "down":
            x = downsample(x)
        if self.flavor == "enc":
            if self.conv_skip is not None:
                x = self.conv_skip(x)
            x = pixel_norm(x)
        y = self.conv_res0(F.silu(x))  # doubles the size in an "up" block
        if self.resample == "up":
            x = upsample(x)
        scale = self.emb_linear(emb, gain=self.emb_gain) + 1  # float32, [N, C_out]
        y = modulated_silu(y, scale)
        if self.config.dropout:
            y = F.dropout(y, self.config.dropout, self.training)
        y = self.conv_res1(y)
        if self.flavor == "dec" and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = torch.add(y, x, alpha=self.res_keep)
        if self.attn_qkv is not None and self.attn_proj is not None:
            y = self.attn_proj(cosine_attention(self.attn_qkv(x), self.num_heads))
            x = torch.add(y, x, alpha=self.attn_keep)
        return clip(x, self.config.clip_act)


class UNet(nn.Module):
    """The raw network F; :class:`edm2lite.diffusion.precond.Precond` makes a denoiser of it.

    Gains are vectors of length 1, not scalars, so that FSDP2 can shard every parameter.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        self.out_gain = nn.Parameter(torch.zeros(1))
        self.emb_fourier = MPFourier(config.model_channels)
        self.emb_noise = MPConv(config.model_channels, config.emb_channels)
        self.emb_label = MPConv(config.label_dim, config.emb_channels) if config.label_dim else None
        self.enc = nn.ModuleDict()
        self.dec = nn.ModuleDict()
        widths = [config.model_channels * m for m in config.channel_mult]
        skips = self._build_encoder(widths)
        channels = self._build_decoder(widths, skips)
        self.out_conv = MPConv(channels, config.img_channels, (3, 3))

    def _build_encoder(self, widths: list[int]) -> list[int]:
        """Add the encoder; returns the width of every output, each of them a skip connection."""
        config = self.config
        skips: list[int] = []
        for level, width in enumerate(widths):
            res = config.img_resolution >> level
            if level == 0:  # one more input channel, of ones, in place of biases
                channels = config.img_channels + config.cond_channels + 1
                self.enc[f"{res}x{res}_conv"] = MPConv(channels, width, (3, 3))
                skips.append(width)
            else:
                self.enc[f"{res}x{res}_down"] = Block(config, skips[-1], skips[-1], "enc", "down")
                skips.append(skips[-1])
            for i in range(config.num_blocks):
                attention = res in config.attn_resolutions
                self.enc[f"{res}x{res}_block{i}"] = Block(
                    config, skips[-1], width, "enc", attention=attention
                )
                skips.append(width)
        return skips

    def _build_decoder(self, widths: list[int], skips: list[int]) -> int:
        """Add the decoder, which uses up ``skips`` from the end; returns its output width."""
        config = self.config
        skips = list(skips)
        channels = skips[-1]
        for level, width in reversed(list(enumerate(widths))):
            res = config.img_resolution >> level
            if level == len(widths) - 1:
                self.dec[f"{res}x{res}_in0"] = Block(
                    config, channels, channels, "dec", attention=True
                )
                self.dec[f"{res}x{res}_in1"] = Block(config, channels, channels, "dec")
            else:
                self.dec[f"{res}x{res}_up"] = Block(config, channels, channels, "dec", "up")
            for i in range(config.num_blocks + 1):
                attention = res in config.attn_resolutions
                self.dec[f"{res}x{res}_block{i}"] = Block(
                    config, channels + skips.pop(), width, "dec", attention=attention
                )
                channels = width
        return channels

    def embed(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        """c_noise [N], labels [N, label_dim] or None -> embedding [N, C_emb], all float32.

        Without labels a conditional network sees the zero vector, as in EDM2.
        """
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None:
            if labels is None:
                labels = emb.new_zeros(1, self.config.label_dim)
            label_emb = self.emb_label(labels * math.sqrt(self.config.label_dim))
            emb = mp_sum(emb, label_emb.expand_as(emb), self.config.label_balance)
        return mp_silu(emb)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        labels: Tensor | None = None,
        cond: Tensor | None = None,
    ) -> Tensor:
        """F_x of unit-variance input.

        Args:
            x: [N, C, H, W] in the dtype to compute in; H and W multiples of 2**(levels-1).
            c_noise: [N] float32.
            labels: [N, label_dim] float32 of L2 norm 1 (one-hot for classes) or 0, or None.
            cond: [N, cond_channels, H, W] of unit variance, in the dtype of ``x``, or None if the
                network takes none.

        Returns:
            [N, C, H, W] in the dtype of ``x``; zero at initialisation.
        """
        emb = self.embed(c_noise, labels)
        given = [x] if cond is None else [x, cond]
        x = torch.cat([*given, torch.ones_like(x[:, :1])], dim=1)
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)  # channels last: faster convolutions
        skips = []
        for block in self.enc.values():
            x = block(x) if isinstance(block, MPConv) else block(x, emb)
            skips.append(x)
        for name, block in self.dec.items():
            if "block" in name:
                x = mp_cat(x, skips.pop(), self.config.concat_balance)
            x = block(x, emb)
        return self.out_conv(x, gain=self.out_gain)
