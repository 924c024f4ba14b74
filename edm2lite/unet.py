"""The magnitude-preserving U-Net of EDM2, config G: ``F(x, c_noise, labels)``.

Wiring (paper, Figs. 21 and 22): an encoder of residual blocks whose every output is kept, a decoder
that takes them back in reverse order by MP-Cat, attention at the low resolutions, one embedding of
noise level and class that modulates every block. Tensor names follow the released EDM2 networks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from edm2lite.layers import (
    MPConv,
    MPFourier,
    cosine_attention,
    downsample,
    mp_cat,
    mp_silu,
    mp_sum,
    pixel_norm,
    upsample,
)


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Shape of a U-Net.

    Attributes:
        img_resolution: Side of the training images; fixes where attention sits.
        img_channels: Channels of images or latents.
        label_dim: Number of classes, or length of a conditioning vector; 0 for none.
        cond_channels: Channels of a conditioning image that is given beside the noisy one; 0 for
            none.
        model_channels: Base width C; level i has ``C * channel_mult[i]`` channels.
        channel_mult: One factor per resolution, from full resolution downwards.
        num_blocks: Residual blocks per resolution in the encoder (one more in the decoder).
        attn_resolutions: Resolutions whose blocks attend.
        head_channels: Channels of an attention head.
        dropout: Probability within the residual branch.
        label_balance, concat_balance, res_balance, attn_balance: Share t of the class embedding, of
            the skip connection, and of the two residual branches.
        clip_act: Activations are clipped to +-clip_act at the end of a block (for fp16).
    """

    img_resolution: int
    img_channels: int
    label_dim: int = 0
    cond_channels: int = 0
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (16, 8)
    head_channels: int = 64
    dropout: float = 0.0
    label_balance: float = 0.5
    concat_balance: float = 0.5
    res_balance: float = 0.3
    attn_balance: float = 0.3
    clip_act: float = 256.0

    def __post_init__(self) -> None:
        factor = 2 ** (len(self.channel_mult) - 1)
        if self.img_resolution % factor:
            raise ValueError(
                f"img_resolution must be a multiple of {factor} with {len(self.channel_mult)}"
                f" entries in channel_mult, got {self.img_resolution}"
            )
        widths = [self.model_channels * m for m in self.channel_mult]
        attending = [widths[-1]] + [  # the first decoder block always attends
            width
            for i, width in enumerate(widths)
            if self.img_resolution >> i in self.attn_resolutions
        ]
        for width in attending:
            if width % self.head_channels:
                raise ValueError(
                    f"a level that attends must have a multiple of head_channels ="
                    f" {self.head_channels} channels, got {width}; change model_channels,"
                    " channel_mult or head_channels"
                )
        if min(self.label_dim, self.cond_channels) < 0:
            raise ValueError("label_dim and cond_channels must be at least 0 (0 for none)")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")

    @property
    def emb_channels(self) -> int:
        """Width of the embedding: that of the widest level."""
        return self.model_channels * max(self.channel_mult)


class Block(nn.Module):
    """One residual block of the encoder or the decoder, with optional resampling and attention.

    Args:
        config: Of the whole network.
        in_channels, out_channels: Widths.
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
        self.emb_gain = nn.Parameter(torch.zeros(1))
        self.conv_res0 = MPConv(res_in, out_channels, (3, 3))
        self.emb_linear = MPConv(config.emb_channels, out_channels)
        self.conv_res1 = MPConv(out_channels, out_channels, (3, 3))
        self.conv_skip = (
            MPConv(in_channels, out_channels, (1, 1)) if in_channels != out_channels else None
        )
        self.attn_qkv = MPConv(out_channels, out_channels * 3, (1, 1)) if attention else None
        self.attn_proj = MPConv(out_channels, out_channels, (1, 1)) if attention else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x [N, C_in, H, W], emb [N, C_emb] float32 -> [N, C_out, H', W'] in the dtype of x."""
        if self.resample == "down":
            x = downsample(x)
        elif self.resample == "up":
            x = upsample(x)
        if self.flavor == "enc":
            if self.conv_skip is not None:
                x = self.conv_skip(x)
            x = pixel_norm(x)
        y = self.conv_res0(mp_silu(x))
        scale = self.emb_linear(emb, gain=self.emb_gain) + 1  # float32, [N, C_out]
        y = mp_silu(y * scale[:, :, None, None].to(y.dtype))
        if self.config.dropout:
            y = nn.functional.dropout(y, self.config.dropout, self.training)
        y = self.conv_res1(y)
        if self.flavor == "dec" and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, self.config.res_balance)
        if self.attn_qkv is not None and self.attn_proj is not None:
            y = self.attn_proj(cosine_attention(self.attn_qkv(x), self.num_heads))
            x = mp_sum(x, y, self.config.attn_balance)
        return x.clamp(-self.config.clip_act, self.config.clip_act)


class UNet(nn.Module):
    """The raw network F; :class:`edm2lite.precond.Precond` makes a denoiser of it.

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
        skips = []
        for block in self.enc.values():
            x = block(x) if isinstance(block, MPConv) else block(x, emb)
            skips.append(x)
        for name, block in self.dec.items():
            if "block" in name:
                x = mp_cat(x, skips.pop(), self.config.concat_balance)
            x = block(x, emb)
        return self.out_conv(x, gain=self.out_gain)
