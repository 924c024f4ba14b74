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

from edm2lite.network.kernels.packed_conv import PackedConv, PackedUpConv, PackedWinograd
from edm2lite.network.kernels.unit_rms import EPS as EPS
from edm2lite.network.kernels.unit_rms import unit_rms
from edm2lite.network.kernels.winograd import winograd_conv2d, winograd_pays

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
    _for_graph = False

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

    def prepare(self, dtype: torch.dtype, for_graph: bool = False) -> None:
        """Normalise the weight once for all following passes; it must not change afterwards.

        ``for_graph`` says that torch.compile will make a graph of them: other kernels are best.
        """
        self._ready, self._packed, self._for_graph = self.normalized_weight(dtype), None, for_graph

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
                self._packed = packed = self._pack(weight, x)
                return packed(x)
        return self._convolve(x, weight)

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        if torch.compiler.is_compiling() and winograd_pays(x, weight):
            return winograd_conv2d(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)

    def _pack(self, weight: Tensor, x: Tensor) -> PackedConv:
        by_winograd = self._for_graph and winograd_pays(x, weight, prepared=True)
        return (PackedWinograd if by_winograd else PackedConv)(weight, x)


class MPUpConv(MPConv):
    """A 3x3 convolution of features that :func:`upsample` has doubled, computed before doubling.

    Each pixel of the output sees four different pixels through its nine weights: sums of weights
    make it a transposed convolution of 4x4 and stride 2, with 4/9 of the multiplications.
    """

    def __init__(self, in_channels: int, out_channels: int, *, in_rms: float = 1.0):
        super().__init__(in_channels, out_channels, (3, 3), in_rms=in_rms)

    def normalized_weight(self, dtype: torch.dtype, gain: float | Tensor = 1.0) -> Tensor:
        """[C_in, C_out, 4, 4]."""
        weight = super().normalized_weight(torch.float32, gain).transpose(0, 1)
        return _pairs(_pairs(weight, 2), 3).to(dtype)

    def saved_macs(self, output: Tensor) -> int:
        """Multiply-accumulates of the plain 3x3 convolution that this one does without."""
        return 5 * self.weight.shape[0] * self.weight.shape[1] * output.shape[2:].numel()

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, 2 H, 2 W]."""
        return F.conv_transpose2d(x, weight, stride=2, padding=1)

    def _pack(self, weight: Tensor, x: Tensor) -> PackedConv:
        return PackedUpConv(weight, x)


def _pairs(weight: Tensor, dim: int) -> Tensor:
    """Three weights on pixels in a row as the four of them on pixels of twice the size."""
    w0, w1, w2 = weight.unbind(dim)
    return torch.stack([w2, w1 + w2, w0 + w1, w0], dim)


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
    if any(p.is_partial() or (p.is_shard() and not p.is_shard(0)) for p in weight.placements):
        raise ValueError(f"weights must be sharded by rows, got {weight.placements}")
    return weight.to_local()  # type: ignore[attr-defined]  # of DTensor


def whole(value: Tensor) -> Tensor:
    """A value over all processes that hold parts of it; of a sharded tensor all must call this."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def mp_weights(net: nn.Module) -> Iterable[nn.Parameter]:
    """The weights that normalisation governs: all but the scalar gains."""
    return (module.weight for module in net.modules() if isinstance(module, MPConv))
