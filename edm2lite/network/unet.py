"""The magnitude-preserving U-Net of EDM2, config G: ``F(x, c_noise, conditioning)``.

Wiring (paper, Figs. 21 and 22): an encoder of residual blocks whose every output is kept, a decoder
that takes them back in reverse order by MP-Cat, attention at the low resolutions, one embedding of
noise level and class that modulates every block. Tensor names follow the released EDM2 networks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2lite.network.attention import QKVConv, cosine_attention
from edm2lite.network.backbone import Backbone, BackboneConfig
from edm2lite.network.conditioning import ClassLabel, Condition, ConditionImage, Conditioning
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


@dataclass(frozen=True, kw_only=True)
class UNetConfig(BackboneConfig):
    """Shape of a U-Net: widths, depths, where it attends, and the shares of its sums.

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

    kind: Literal["unet"] = "unet"
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

    tensor_prefix: ClassVar[str] = "unet"  # as in the released networks
    groups: ClassVar[Mapping[str, str]] = {
        "embedding": r"unet\.emb_|emb_(linear|gain)",
        "attention": r"\.attn_",
        "encoder": r"unet\.enc\.",
        "decoder": r"unet\.dec\.",
        "output": r"unet\.out_",
    }

    def __post_init__(self) -> None:
        if self.img_resolution % self.size_multiple:
            raise ValueError(
                f"img_resolution must be a multiple of {self.size_multiple} with {len(self.channel_mult)}"
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

    @property
    def size_multiple(self) -> int:
        """The resolution is halved once per level."""
        return 1 << (len(self.channel_mult) - 1)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """A class label, a condition image, both or none."""
        label = (ClassLabel(self.label_dim),) if self.label_dim else ()
        image = (ConditionImage(self.cond_channels),) if self.cond_channels else ()
        return (*label, *image)

    def build(self) -> UNet:
        """The network, with random weights."""
        return UNet(self)


class Block(nn.Module):
    """One residual block of the encoder or the decoder, with optional resampling and attention.

    Args:
        config: Configuration of the network that the block is part of.
        in_channels: Width of the input, skip connection included.
        out_channels: Width of the output.
        flavor: The encoder normalises pixels, and widens on the main path first.
        resample: What happens to the resolution at the entry.
        attention: Whether self-attention follows the convolutions.
        takes_skip: Whether the input is joined with a skip connection of the encoder.
    """

    def __init__(
        self,
        config: UNetConfig,
        in_channels: int,
        out_channels: int,
        flavor: Literal["enc", "dec"],
        resample: Literal["keep", "up", "down"] = "keep",
        attention: bool = False,
        takes_skip: bool = False,
    ):
        super().__init__()
        self.config, self.flavor, self.resample = config, flavor, resample
        self.takes_skip = takes_skip
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


class UNet(Backbone):
    """The network F; :class:`edm2lite.diffusion.precond.Precond` makes a denoiser of it.

    Gains are vectors of length 1, not scalars, so that FSDP2 can shard every parameter.
    """

    config: UNetConfig

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
                    config,
                    channels + skips.pop(),
                    width,
                    "dec",
                    attention=attention,
                    takes_skip=True,
                )
                channels = width
        return channels

    def blocks(self) -> list[nn.Module]:
        """The residual blocks."""
        return [
            block for block in (*self.enc.values(), *self.dec.values()) if block is not self.stem
        ]

    def embed(self, c_noise: Tensor, label: Tensor | None) -> Tensor:
        """Embedding of noise level and class, which modulates every block.

        Args:
            c_noise: [N] float32.
            label: [N] class indices or [N, label_dim] vectors; without it a conditional network
                sees the zero vector, as in EDM2.

        Returns:
            [N, C_emb] float32.
        """
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None:
            vectors = emb.new_zeros(1, self.config.label_dim)
            if label is not None:
                vectors = ClassLabel(self.config.label_dim).vectors(label)
            label_emb = self.emb_label(vectors * math.sqrt(self.config.label_dim))
            emb = mp_sum(emb, label_emb.expand_as(emb), self.config.label_balance)
        return mp_silu(emb)

    def forward(self, x: Tensor, c_noise: Tensor, conditioning: Conditioning) -> Tensor:
        """F_x of input of unit variance, see :meth:`Backbone.forward`; zero at initialization."""
        emb = self.embed(c_noise, conditioning.get("label"))
        image = conditioning.get("image")
        inputs = [x] if image is None else [x, image.to(x.dtype)]
        x = torch.cat([*inputs, torch.ones_like(x[:, :1])], dim=1)
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)  # channels last: faster convolutions
        x = self.stem(x)
        skips = [x]
        for block in list(self.enc.values())[1:]:
            x = block(x, emb)
            skips.append(x)
        for block in self.dec.values():
            if block.takes_skip:
                x = mp_cat(x, skips.pop(), self.config.concat_balance)
            x = block(x, emb)
        return self.out_conv(x, gain=self.out_gain)

    @property
    def stem(self) -> nn.Module:
        """The convolution that the encoder begins with."""
        return next(iter(self.enc.values()))
