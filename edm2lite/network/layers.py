"""Magnitude-preserving layers: input of variance 1 gives output of variance 1.

No layer looks at its data for that: the weights are normalized instead, twice. ``forward`` divides
by the length of the weight (Eq. 47), so that the length does not reach the output and the gradient
is tangential. :func:`normalize_weights_`, called once per optimizer step, resets the stored length
(Eq. 66), so that the relative step size is the learning rate. Equations are those of arXiv
2312.02696.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from edm2lite.network.kernels.convolution import convolve, convolve_upsampled
from edm2lite.network.kernels.unit_rms import unit_rms
from edm2lite.network.kernels.unit_rows import unit_rows_


class MPFourier(nn.Module):
    """Random Fourier features ``sqrt(2) cos(2 pi (f x + phi))`` of a scalar (Eq. 75).

    Frequencies f ~ N(0, bandwidth**2) and phases phi ~ U(0, 1) are fixed buffers.

    Args:
        num_channels: Number of features.
        bandwidth: Standard deviation of the frequencies.

    Example:
        >>> y = MPFourier(4096)(torch.tensor([0.3, -1.7]))
        >>> y.shape, bool((y.square().mean(1) - 1).abs().max() < 0.1)
        (torch.Size([2, 4096]), True)
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
    """Linear layer or convolution without bias, with normalized weights (Eq. 47).

    ``y = (w / (rms(w) + eps) * gain / sqrt(fan_in)) * x`` per output channel: features of RMS 1
    give features of RMS ``gain``. Convolutions have stride 1 and zero padding that keeps the size.

    Args:
        in_channels: Number of channels of the input.
        out_channels: Number of channels of the output.
        kernel: () for a linear layer on [..., C], (k, k) with odd k for a convolution.
        in_rms: RMS of the input, e.g. SILU_RMS after a plain silu.
        out_rms: RMS that the output is to have, e.g. its share in a sum.

    Example:
        >>> layer = MPConv(64, 128, (3, 3))
        >>> layer(torch.randn(2, 64, 8, 8)).shape
        torch.Size([2, 128, 8, 8])
    """

    convolve = staticmethod(convolve)
    """The function of input and normalized weight that the layer computes."""

    has_fixed_length: ClassVar[bool] = True
    """Whether :func:`normalize_weights_` resets the length of the stored weights."""

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

    def normalized_weight(self, dtype: torch.dtype, gain: float | Tensor = 1.0) -> Tensor:
        """The weight that ``forward`` applies: rows have L2 norm ``gain * out_rms / in_rms``."""
        weight: Tensor = self.weight  # asked for once: an adapted layer computes it
        weight = unit_rms(weight.float(), tuple(range(1, weight.ndim)), self._norm)
        if isinstance(gain, Tensor) or gain != 1:
            weight = weight * gain
        return weight.to(dtype)

    def forward(self, x: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        """[N, C_in, ...] -> [N, C_out, ...] in the dtype of ``x``, of RMS ``gain * out_rms``."""
        return self.convolve(x, self.normalized_weight(x.dtype, gain))

    def fixed_length_weights(self) -> list[nn.Parameter]:
        """Trained weights whose rows :func:`normalize_weights_` resets to RMS 1."""
        weight = self._parameters.get("weight")  # None in an adapted layer
        if weight is None or not weight.requires_grad or not self.has_fixed_length:
            return []
        return [weight]

    def expected_rms(self, x: Tensor, gain: float | Tensor = 1.0) -> float | Tensor:
        """The RMS that ``forward(x, gain)`` has by design, for input of RMS ``in_rms``."""
        return self.out_rms * gain

    def saved_macs(self, output: Tensor) -> int:
        """Multiply-accumulates of the layer's definition that its kernel does without."""
        return 0


class MPUpConv(MPConv):
    """The 3x3 convolution of ``upsample(x)``, computed before the pixels are copied.

    Each pixel of the output sees four different pixels through its nine weights: sums of weights
    make it a transposed convolution of 4x4 and stride 2, with 4/9 of the multiplications.

    Args:
        in_channels: Number of channels of the input.
        out_channels: Number of channels of the output.
        in_rms: RMS of the input.

    Example:
        >>> MPUpConv(8, 4)(torch.randn(2, 8, 5, 5)).shape
        torch.Size([2, 4, 10, 10])
    """

    convolve = staticmethod(convolve_upsampled)

    def __init__(self, in_channels: int, out_channels: int, *, in_rms: float = 1.0):
        super().__init__(in_channels, out_channels, (3, 3), in_rms=in_rms)

    def normalized_weight(self, dtype: torch.dtype, gain: float | Tensor = 1.0) -> Tensor:
        """[C_in, C_out, 4, 4], the weight of the transposed convolution."""
        weight = super().normalized_weight(torch.float32, gain).transpose(0, 1)
        return _pairs(_pairs(weight, 2), 3).to(dtype)

    def saved_macs(self, output: Tensor) -> int:
        """Multiply-accumulates of the plain 3x3 convolution that this one does without."""
        return 5 * self.weight.shape[0] * self.weight.shape[1] * output.shape[2:].numel()


def _pairs(weight: Tensor, dim: int) -> Tensor:
    """Three weights on neighboring pixels, as four on pixels of twice the size."""
    w0, w1, w2 = weight.unbind(dim)
    return torch.stack([w2, w1 + w2, w0 + w1, w0], dim)


def mp_layers(net: nn.Module) -> Iterator[MPConv]:
    """The magnitude-preserving layers of a network, in the order of their definition, each once.

    Example:
        >>> net = nn.Sequential(MPConv(4, 8), nn.SiLU(), MPConv(8, 4))
        >>> [layer.out_rms for layer in mp_layers(net)]
        [1.0, 1.0]
    """
    return (module for module in net.modules() if isinstance(module, MPConv))


def mp_weights(net: nn.Module) -> Iterable[nn.Parameter]:
    """The weights of the magnitude-preserving layers: all parameters but the gains.

    Example:
        >>> [list(weight.shape) for weight in mp_weights(nn.Sequential(MPConv(4, 8)))]
        [[8, 4]]
    """
    return (layer.weight for layer in mp_layers(net))


@torch.no_grad()
def normalize_weights_(net: nn.Module) -> None:
    """Reset the stored rows of every magnitude-preserving layer to RMS 1, in place (Eq. 66).

    Call it once per optimizer step, after the EMA update. Rows of zeros stay zero; layers without
    :attr:`MPConv.has_fixed_length` and frozen weights stay as they are. Further modules take part
    by a method ``fixed_length_weights``, see :meth:`MPConv.fixed_length_weights`. Where weights are
    sharded by rows (FSDP2) every process normalizes its own rows, without communication.

    Example:
        >>> layer = MPConv(4, 2)
        >>> _ = layer.weight.data.mul_(3)
        >>> normalize_weights_(layer)
        >>> layer.weight.detach().square().mean(1)
        tensor([1.0000, 1.0000])
    """
    modules: list[Any] = [m for m in net.modules() if hasattr(m, "fixed_length_weights")]
    fixed = [weight for module in modules for weight in module.fixed_length_weights()]
    # those without values (meta) have nothing to change, and asking for it takes long
    unit_rows_(weight for weight in map(_local_rows, fixed) if not weight.is_meta)


def _local_rows(weight: Tensor) -> Tensor:
    """The rows that this process holds, as a plain tensor that shares their memory."""
    if not hasattr(weight, "placements"):
        return weight
    if any(p.is_partial() or (p.is_shard() and not p.is_shard(0)) for p in weight.placements):
        raise ValueError(f"weights must be sharded by rows, got {weight.placements}")
    local: Tensor = weight.to_local()  # type: ignore[attr-defined]  # of DTensor
    return local


def gather(value: Tensor) -> Tensor:
    """The whole of a tensor that is sharded over processes; another tensor as it is.

    All processes that hold shards of it must call this together.

    Example:
        >>> gather(torch.ones(2))
        tensor([1., 1.])
    """
    return value.full_tensor() if hasattr(value, "full_tensor") else value
