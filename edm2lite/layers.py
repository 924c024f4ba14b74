"""Magnitude-preserving building blocks: unit-variance input gives unit-variance output.

No layer looks at its data to do so (only :func:`pixel_norm` and the attention do); the weights are
normalised instead, twice. ``forward`` divides by the weight's length (Eq. 47), so that the length
does not reach the output and the gradient is tangential; :func:`normalize_weights_`, called once
per optimizer step, resets the stored length (Eq. 66), so that the relative step size stays the
learning rate. Equations are those of arXiv 2312.02696.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-4
"""Added to the RMS that normalisation divides by, outside the root."""

SILU_RMS = 0.596
"""RMS of silu(z) for z ~ N(0, 1), as the reference rounds it (Eq. 81)."""


def unit_rms(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """``x / (EPS + rms(x))``, RMS over ``dim`` in float32; same shape and dtype (Eq. 30)."""
    # As fast as memory where torch's vector_norm over an inner dim is not; the tiny term keeps the
    # gradient finite at x = 0.
    rms = (x.float().square().mean(dim, keepdim=True) + 1e-24).sqrt()
    return x / (rms + EPS).to(x.dtype)


def pixel_norm(x: Tensor) -> Tensor:
    """[N, C, H, W] -> the same, every pixel's channel vector of RMS 1 (Eq. 30)."""
    return unit_rms(x, dim=1)


def mp_silu(x: Tensor) -> Tensor:
    """``silu(x) / 0.596``, of RMS 1 for x ~ N(0, 1) (Eq. 81)."""
    return F.silu(x) / SILU_RMS


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """``((1-t) a + t b) / sqrt((1-t)**2 + t**2)``, of the magnitude of unrelated a, b (Eq. 88)."""
    return torch.lerp(a, b, t) / math.sqrt((1 - t) ** 2 + t**2)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Channels of a and b side by side, scaled so that b has the share t of the sum (Eq. 103).

    [N, C_a, ...], [N, C_b, ...] -> [N, C_a + C_b, ...]; at t = 0.5 both contribute equally to the
    next layer whatever their channel counts.
    """
    num_a, num_b = a.shape[1], b.shape[1]
    scale = math.sqrt((num_a + num_b) / ((1 - t) ** 2 + t**2))
    return torch.cat(
        [a * (scale * (1 - t) / math.sqrt(num_a)), b * (scale * t / math.sqrt(num_b))], 1
    )


def downsample(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, H/2, W/2], the mean of each 2x2 square."""
    return F.avg_pool2d(x, 2)


def upsample(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, 2H, 2W], each pixel copied to a 2x2 square."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


class MPFourier(nn.Module):
    """Random Fourier features ``sqrt(2) cos(2 pi (f x + phi))`` of a scalar (Eq. 75).

    Frequencies f ~ N(0, bandwidth**2) and phases phi ~ U(0, 1) are fixed buffers.
    """

    freqs: Tensor
    phases: Tensor

    def __init__(self, num_channels: int, bandwidth: float = 1.0):
        super().__init__()
        self.register_buffer("freqs", 2 * np.pi * torch.randn(num_channels) * bandwidth)
        self.register_buffer("phases", 2 * np.pi * torch.rand(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N] -> [N, num_channels], computed in float32, in the dtype of ``x``."""
        angle = x.float().outer(self.freqs.float()) + self.phases.float()
        return (angle.cos() * math.sqrt(2)).to(x.dtype)


class MPConv(nn.Module):
    """Linear layer (``kernel=()``) or convolution without bias, of unit-norm weights (Eq. 47).

    Stride 1 and zero padding that keeps the size.

    Args:
        in_channels, out_channels: Widths.
        kernel: () for a linear layer on [N, C], (k, k) with odd k for a convolution.
    """

    _ready: Tensor | None

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, ...] = ()):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *kernel))
        self.register_buffer("_ready", None, persistent=False)

    def prepare(self, dtype: torch.dtype) -> None:
        """Normalise the weight once for all following passes; it must not change afterwards."""
        self._ready = self.normalized_weight(dtype)

    def normalized_weight(self, dtype: torch.dtype, gain: float | Tensor = 1.0) -> Tensor:
        """The weight that ``forward`` applies: rows of L2 norm ``gain``, in ``dtype``."""
        fan_in = self.weight[0].numel()
        unit = unit_rms(self.weight.float(), dim=tuple(range(1, self.weight.ndim)))
        return (unit * (gain / math.sqrt(fan_in))).to(dtype)

    def forward(self, x: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        """[N, C_in, ...] -> [N, C_out, ...], of variance gain**2 for unit-variance input."""
        if self._ready is None:
            weight = self.normalized_weight(x.dtype, gain)
        else:
            weight = self._ready if isinstance(gain, float) else (self._ready * gain).to(x.dtype)
        if weight.ndim == 2:
            return F.linear(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


@torch.no_grad()
def normalize_weights_(net: nn.Module) -> None:
    """Reset the stored rows of every :class:`MPConv` in ``net`` to RMS 1, in place (Eq. 66).

    Call it once per optimizer step, after the EMA update. Rows of zeros stay zero. Of weights
    sharded by rows (FSDP2) every process normalises the rows it holds, without communication.
    """
    for weight in map(_rows_here, mp_weights(net)):
        rms = torch.linalg.vector_norm(weight.flatten(1), dim=1) / math.sqrt(
            weight.shape[1:].numel()
        )
        rms = rms.clamp_min(torch.finfo(rms.dtype).tiny)
        weight.div_(rms.reshape(-1, *[1] * (weight.ndim - 1)))


def _rows_here(weight: Tensor) -> Tensor:
    """The rows that this process holds, as a plain tensor that shares their memory."""
    if not hasattr(weight, "placements"):
        return weight
    if any(p.is_partial() or p.is_shard() and not p.is_shard(0) for p in weight.placements):
        raise ValueError(f"weights must be sharded by rows, got {weight.placements}")
    return weight.to_local()  # type: ignore[attr-defined]  # of DTensor


def whole(value: Tensor) -> Tensor:
    """A value over all processes that hold parts of it; of a sharded tensor all must call this."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def mp_weights(net: nn.Module) -> Iterable[nn.Parameter]:
    """The weights that normalisation governs: all but the scalar gains."""
    return (module.weight for module in net.modules() if isinstance(module, MPConv))


def cosine_attention(qkv: Tensor, num_heads: int) -> Tensor:
    """Self-attention over pixels with q, k and v of RMS 1 per head.

    Logits are ``q . k / sqrt(C_head)``, bounded by sqrt(C_head) in absolute value.

    Args:
        qkv: [N, 3*C, H, W]; within a head the channels interleave as (C_head, 3).
        num_heads: Divides C.

    Returns:
        [N, C, H, W].
    """
    n, c3, h, w = qkv.shape
    parts = qkv.reshape(n, num_heads, c3 // (3 * num_heads), 3, h * w)  # [N, heads, C_head, 3, HW]
    q, k, v = unit_rms(parts, dim=2).permute(3, 0, 1, 4, 2)  # each [N, heads, HW, C_head]
    y = F.scaled_dot_product_attention(q, k, v)
    return y.transpose(2, 3).reshape(n, c3 // 3, h, w)
