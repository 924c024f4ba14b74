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
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2lite.packed_conv import PackedConv
from edm2lite.plain_autograd import is_plain_autograd
from edm2lite.unit_rms import EPS as EPS
from edm2lite.unit_rms import unit_rms

SILU_RMS = 0.596
"""RMS of silu(z) for z ~ N(0, 1), as the reference rounds it (Eq. 81)."""


def pixel_norm(x: Tensor) -> Tensor:
    """[N, C, H, W] -> the same, every pixel's channel vector of RMS 1 (Eq. 30)."""
    return unit_rms(x, dim=1)


def mp_silu(x: Tensor) -> Tensor:
    """``silu(x) / 0.596``, of RMS 1 for x ~ N(0, 1) (Eq. 81)."""
    return F.silu(x) / SILU_RMS


def mp_shares(t: float) -> tuple[float, float]:
    """Factors of a and b in :func:`mp_sum`; their squares add up to 1."""
    norm = math.sqrt((1 - t) ** 2 + t**2)
    return (1 - t) / norm, t / norm


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """``((1-t) a + t b) / sqrt((1-t)**2 + t**2)``, of the magnitude of unrelated a, b (Eq. 88)."""
    share_a, share_b = mp_shares(t)
    return torch.add(a * share_a, b, alpha=share_b)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Channels of a and b side by side, scaled so that b has the share t of the sum (Eq. 103).

    [N, C_a, ...], [N, C_b, ...] -> [N, C_a + C_b, ...]; at t = 0.5 both contribute equally to the
    next layer whatever their channel counts.
    """
    num_a, num_b = a.shape[1], b.shape[1]
    scale = math.sqrt((num_a + num_b) / ((1 - t) ** 2 + t**2))
    factors = scale * (1 - t) / math.sqrt(num_a), scale * t / math.sqrt(num_b)
    if all(math.isclose(factor, 1) for factor in factors):  # equal widths at t = 0.5
        return torch.cat([a, b], 1)
    return torch.cat([a * factors[0], b * factors[1]], 1)


def downsample(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, H/2, W/2], the mean of each 2x2 square."""
    return F.avg_pool2d(x, 2)


def upsample(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, 2H, 2W], each pixel copied to a 2x2 square."""
    if torch.compiler.is_compiling():  # copies that compile into loops, as an index does not
        n, c, h, w = x.shape
        pixels = x.permute(0, 2, 3, 1)[:, :, None, :, None]
        return pixels.expand(n, h, 2, w, 2, c).reshape(n, 2 * h, 2 * w, c).permute(0, 3, 1, 2)
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
    """Linear layer (``kernel=()``) or convolution without bias, of normalised weights (Eq. 47).

    Stride 1 and zero padding that keeps the size. It takes features of RMS ``in_rms`` to features
    of RMS ``out_rms``: constant factors before and after it cost nothing within its weights.

    Args:
        in_channels: Width of the input.
        out_channels: Width of the output.
        kernel: () for a linear layer on [N, C], (k, k) with odd k for a convolution.
        in_rms: Of the input, e.g. SILU_RMS after a plain silu.
        out_rms: Of the output, e.g. its share in a sum.
    """

    _ready: Tensor | None
    _packed: PackedConv | None = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, ...] = (),
        *,
        in_rms: float = 1.0,
        out_rms: float = 1.0,
    ):
        super().__init__()
        self.out_rms = out_rms
        self._norm = out_rms / in_rms / math.sqrt(in_channels * math.prod(kernel))
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *kernel))
        self.register_buffer("_ready", None, persistent=False)

    def __getstate__(self) -> dict[str, Any]:
        """A copy packs for itself: what is packed is opaque to copying and pickling."""
        return {**self.__dict__, "_packed": None}

    def prepare(self, dtype: torch.dtype) -> None:
        """Normalise the weight once for all following passes; it must not change afterwards."""
        self._ready, self._packed = self.normalized_weight(dtype), None

    def normalized_weight(self, dtype: torch.dtype, gain: float | Tensor = 1.0) -> Tensor:
        """The weight that ``forward`` applies, in ``dtype``.

        Its rows have L2 norm ``gain * out_rms / in_rms``.
        """
        dim = tuple(range(1, self.weight.ndim))
        weight = unit_rms(self.weight.float(), dim, self._norm)
        return (weight if isinstance(gain, float) and gain == 1 else weight * gain).to(dtype)

    def forward(self, x: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        """[N, C_in, ...] -> [N, C_out, ...], of RMS ``gain * out_rms``."""
        if self._ready is None:
            weight = self.normalized_weight(x.dtype, gain)
        elif isinstance(gain, float) and gain == 1:
            weight = self._ready
        else:
            weight = (self._ready * gain).to(x.dtype)
        if weight.ndim == 2:
            return F.linear(x, weight)
        if weight is self._ready and PackedConv.serves(x):
            packed = self._packed  # looked at once: other threads may replace it
            if packed is not None and packed.fits(weight, x):
                return packed(x)
            if not torch.compiler.is_compiling():  # a graph takes what is there
                self._packed = packed = PackedConv(weight, x)
                return packed(x)
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


class QKVConv(MPConv):
    """Queries, keys and values of an attention: a 1x1 convolution from C to 3*C channels.

    The rows of the stored weight interleave as (heads, C_head, 3), as in the released networks; the
    output has its channels in the order (3, heads, C_head), which no pass over memory has to undo.
    """

    def __init__(self, channels: int, num_heads: int):
        super().__init__(channels, 3 * channels, (1, 1))
        self.num_heads = num_heads

    def normalized_weight(self, dtype: torch.dtype, gain: float | Tensor = 1.0) -> Tensor:
        rows = super().normalized_weight(dtype, gain).unflatten(0, (self.num_heads, -1, 3))
        return rows.movedim(2, 0).flatten(0, 2)


def cosine_attention(qkv: Tensor, num_heads: int) -> Tensor:
    """Self-attention over pixels with q, k and v of RMS 1 per head.

    Logits are ``q . k / sqrt(C_head)``, bounded by sqrt(C_head) in absolute value.

    Args:
        qkv: [N, 3*C, H, W], channels in the order (3, heads, C_head).
        num_heads: Divides C.

    Returns:
        [N, C, H, W].
    """
    n, c3, h, w = qkv.shape
    parts = qkv.permute(0, 2, 3, 1).reshape(n, h * w, 3, num_heads, c3 // (3 * num_heads))
    q, k, v = unit_rms(parts, dim=4).permute(2, 0, 3, 1, 4)  # each [N, heads, HW, C_head]
    return _attend(q, k, v).transpose(1, 2).reshape(n, h, w, c3 // 3).permute(0, 3, 1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    # Fused kernels lack forward and second derivatives. Where these may be asked for, and a CPU
    # loses little, the products are written out.
    by_hand = q.device.type in ("cpu", "meta") and torch.is_grad_enabled()
    if not torch.compiler.is_compiling() and (by_hand or not is_plain_autograd()):
        return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)
