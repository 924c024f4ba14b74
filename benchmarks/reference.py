"""The EDM2 network as one writes it from the paper, one kernel per operation: the yardstick.

Weight norm and forced weight norm in every forward pass, resampling by depthwise convolutions,
attention in two einsum contractions, nothing fused, cached or prepared. Weights carry the names of
``edm2lite.diffusion.precond.Precond``, so that one loads into the other;
``tests/network/test_reference.py`` holds the two equal. It is meant to be read, and to be measured
against.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.unet import UNetConfig


def normalize(x: Tensor, dim: Sequence[int] | int | None = None) -> Tensor:
    """Divide by 1e-4 plus the RMS over ``dim`` [all but the first] (Eq. 30, 47)."""
    dims = tuple(range(1, x.ndim)) if dim is None else dim
    rms = x.float().square().mean(dims, keepdim=True).sqrt()
    return x / (rms + 1e-4).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    return ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    num_a, num_b = a.shape[1], b.shape[1]
    scale = math.sqrt((num_a + num_b) / ((1 - t) ** 2 + t**2))
    a = scale * (1 - t) / math.sqrt(num_a) * a
    return torch.cat([a, scale * t / math.sqrt(num_b) * b], dim=1)


def resample(x: Tensor, mode: str) -> Tensor:
    """Down or up by 2 with the filter [1, 1] / 2 along both axes."""
    channels = x.shape[1]
    kernel = torch.full((channels, 1, 2, 2), 0.25, dtype=x.dtype, device=x.device)
    if mode == "down":
        return F.conv2d(x, kernel, stride=2, groups=channels)
    if mode == "up":
        return F.conv_transpose2d(x, kernel * 4, stride=2, groups=channels)
    return x


class Fourier(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", 2 * np.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * np.pi * torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        return (x.float().outer(self.freqs) + self.phases).cos() * math.sqrt(2)


class Conv(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, *kernel: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *kernel))

    def forward(self, x: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        w = self.weight.float()
        if self.training:
            with torch.no_grad():
                self.weight.copy_(normalize(w))  # forced weight norm (Eq. 66)
        w = normalize(w)  # weight norm (Eq. 47)
        w = (w * (gain / math.sqrt(w[0].numel()))).to(x.dtype)
        return x @ w.t() if w.ndim == 2 else F.conv2d(x, w, padding=w.shape[-1] // 2)


class Block(nn.Module):
    def __init__(
        self, c: UNetConfig, in_ch: int, out_ch: int, decoder: bool, mode: str, attention: bool
    ):
        super().__init__()
        self.config, self.decoder, self.mode = c, decoder, mode
        self.num_heads = out_ch // c.head_channels if attention else 0
        self.emb_gain = nn.Parameter(torch.zeros(1))
        self.conv_res0 = Conv(in_ch if decoder else out_ch, out_ch, 3, 3)
        self.emb_linear = Conv(c.emb_channels, out_ch)
        self.conv_res1 = Conv(out_ch, out_ch, 3, 3)
        self.conv_skip = Conv(in_ch, out_ch, 1, 1) if in_ch != out_ch else None
        self.attn_qkv = Conv(out_ch, 3 * out_ch, 1, 1) if attention else None
        self.attn_proj = Conv(out_ch, out_ch, 1, 1) if attention else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        c = self.config
        x = resample(x, self.mode)
        if not self.decoder:
            if self.conv_skip is not None:
                x = self.conv_skip(x)
            x = normalize(x, dim=1)
        y = self.conv_res0(mp_silu(x))
        scale = self.emb_linear(emb, gain=self.emb_gain) + 1
        y = mp_silu(y * scale.unsqueeze(2).unsqueeze(3).to(y.dtype))
        if c.dropout:
            y = F.dropout(y, c.dropout, self.training)
        y = self.conv_res1(y)
        if self.decoder and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, c.res_balance)
        if self.attn_qkv is not None and self.attn_proj is not None:
            y = self.attn_qkv(x)
            y = y.reshape(y.shape[0], self.num_heads, -1, 3, y.shape[2] * y.shape[3])
            q, k, v = normalize(y, dim=2).unbind(3)
            w = torch.einsum("nhcq,nhck->nhqk", q, k / math.sqrt(q.shape[2])).softmax(dim=3)
            y = torch.einsum("nhqk,nhck->nhcq", w, v)
            x = mp_sum(x, self.attn_proj(y.reshape(x.shape)), c.attn_balance)
        return x.clip(-c.clip_act, c.clip_act)


class UNet(nn.Module):
    def __init__(self, c: UNetConfig):
        super().__init__()
        self.config = c
        widths = [c.model_channels * m for m in c.channel_mult]
        self.emb_fourier = Fourier(c.model_channels)
        self.emb_noise = Conv(c.model_channels, c.emb_channels)
        self.emb_label = Conv(c.label_dim, c.emb_channels) if c.label_dim else None
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        skips: list[int] = []
        for level, width in enumerate(widths):
            res = c.img_resolution >> level
            attention = res in c.attn_resolutions
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = Conv(c.img_channels + 1, width, 3, 3)
                skips.append(width)
            else:
                down = Block(c, skips[-1], skips[-1], False, "down", False)
                self.enc[f"{res}x{res}_down"] = down
                skips.append(skips[-1])
            for i in range(c.num_blocks):
                block = Block(c, skips[-1], width, False, "keep", attention)
                self.enc[f"{res}x{res}_block{i}"] = block
                skips.append(width)
        ch = skips[-1]
        for level, width in reversed(list(enumerate(widths))):
            res = c.img_resolution >> level
            attention = res in c.attn_resolutions
            if level == len(widths) - 1:
                self.dec[f"{res}x{res}_in0"] = Block(c, ch, ch, True, "keep", True)
                self.dec[f"{res}x{res}_in1"] = Block(c, ch, ch, True, "keep", False)
            else:
                self.dec[f"{res}x{res}_up"] = Block(c, ch, ch, True, "up", False)
            for i in range(c.num_blocks + 1):
                block = Block(c, ch + skips.pop(), width, True, "keep", attention)
                self.dec[f"{res}x{res}_block{i}"] = block
                ch = width
        self.out_conv = Conv(ch, c.img_channels, 3, 3)
        self.out_gain = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None:
            if labels is None:
                labels = emb.new_zeros(len(emb), self.config.label_dim)
            label_emb = self.emb_label(labels * math.sqrt(self.config.label_dim))
            emb = mp_sum(emb, label_emb, self.config.label_balance)
        emb = mp_silu(emb)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips = []
        for block in self.enc.values():
            x = block(x) if isinstance(block, Conv) else block(x, emb)
            skips.append(x)
        for name, block in self.dec.items():
            if "block" in name:
                x = mp_cat(x, skips.pop(), self.config.concat_balance)
            x = block(x, emb)
        return self.out_conv(x, gain=self.out_gain)


class Reference(nn.Module):
    """The denoiser ``D(x; sigma, labels)`` and its ``logvar``, in the interface of ``Precond``."""

    def __init__(self, config: PrecondConfig):
        super().__init__()
        self.config = config
        self.unet = UNet(config.backbone)
        self.logvar_fourier = Fourier(config.logvar_channels)
        self.logvar_linear = Conv(config.logvar_channels, 1)

    def forward(
        self, x: Tensor, sigma: Tensor, conditioning: Conditioning | Tensor | None = None
    ) -> Tensor:
        """x [N, C, H, W], sigma [N] or scalar; labels [N] classes or [N, label_dim] or none."""
        sigma = sigma.float().expand(len(x)).reshape(-1, 1, 1, 1)
        labels = Conditioning.of(conditioning).get("label")
        if labels is not None and labels.ndim == 1:
            labels = F.one_hot(labels, self.config.backbone.label_dim)
        if labels is not None:
            labels = labels.float()
        data = self.config.sigma_data
        c_skip = data**2 / (sigma**2 + data**2)
        c_out = sigma * data / (sigma**2 + data**2).sqrt()
        c_in = 1 / (sigma**2 + data**2).sqrt()
        c_noise = sigma.flatten().log() / 4
        F_x = self.unet((c_in * x).to(getattr(torch, self.config.dtype)), c_noise, labels)
        return c_skip * x + c_out * F_x.float()

    def logvar(self, sigma: Tensor) -> Tensor:
        return self.logvar_linear(self.logvar_fourier(sigma.log() / 4)).squeeze(1)


def reference_of(net: Precond) -> Reference:
    """The same network with the same weights, on the same device and in the same mode."""
    other = Reference(net.config)
    other.load_state_dict(copy.deepcopy(net.state_dict()))
    return other.to(next(net.parameters()).device).train(net.training)


def reference_denoiser(net: Precond) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """``(x, sigma, labels) -> D_x`` by the straightforward network, without gradients."""
    return torch.no_grad()(reference_of(net).eval())
