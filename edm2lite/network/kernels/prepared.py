"""Layers of a network that only samples: their weights are normalized, scaled and cast once.

The network that is trained is never touched: :func:`prepared_copy` makes another one, in which a
:class:`PreparedConv` stands in place of every magnitude-preserving layer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from edm2lite.network.kernels.convolution import Convolve, pack
from edm2lite.network.kernels.packed_conv import PackedConv

M = TypeVar("M", bound=nn.Module)


class Layer(Protocol):
    """What a layer offers to be prepared: :class:`edm2lite.network.layers.MPConv` does."""

    weight: nn.Parameter

    @property
    def convolve(self) -> Convolve:
        """The function of input and normalized weight that the layer computes."""

    def normalized_weight(self, dtype: torch.dtype) -> Tensor:
        """The weight that it computes with."""


class PreparedConv(nn.Module):
    """A layer whose weight is fixed, called like the layer that it was made of.

    On a CPU in float32 it also keeps the weight in the order that the kernel wants for the shape of
    the input seen last.

    Args:
        layer: The layer to prepare; it stays as it is.
        dtype: Type to compute convolutions in. Matrices are kept in float32, because embeddings are
            computed in it, and cast in every call where the input is of another type.
        compiled: Whether torch.compile will make a graph of the calls. The graph uses what was
            packed by a call before it, without gradients.

    Example:
        >>> from edm2lite.network.layers import MPConv
        >>> layer, x = MPConv(8, 4, (3, 3)), torch.randn(2, 8, 16, 16)
        >>> torch.allclose(PreparedConv(layer, torch.float32)(x), layer(x), atol=1e-5)
        True
    """

    weight: Tensor
    _packed: PackedConv | None

    @torch.no_grad()
    def __init__(self, layer: Layer, dtype: torch.dtype, compiled: bool = False):
        super().__init__()
        dtype = torch.float32 if layer.weight.ndim == 2 else dtype
        self.register_buffer("weight", layer.normalized_weight(dtype), persistent=False)
        self._convolve, self._compiled, self._packed = layer.convolve, compiled, None

    def __getstate__(self) -> dict[str, Any]:
        """The state without what is packed, which is opaque to copying and pickling."""
        return {**self.__dict__, "_packed": None}

    def forward(self, x: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        """The output of the layer."""
        weight = self.weight
        if isinstance(gain, Tensor) or gain != 1:
            return self._convolve(x, (weight * gain).to(x.dtype))
        if weight.dtype != x.dtype:
            weight = weight.to(x.dtype)
        packed = self._packed_for(weight, x)
        return self._convolve(x, weight) if packed is None else packed(x)

    def _packed_for(self, weight: Tensor, x: Tensor) -> PackedConv | None:
        if weight.ndim == 2 or not PackedConv.serves(x):
            return None
        packed = self._packed  # looked at once: other threads may replace it
        if packed is not None and packed.fits(weight, x):
            return packed
        if torch.compiler.is_compiling():  # a graph takes what is there
            return None
        self._packed = packed = pack(self._convolve, weight, x, self._compiled)
        return packed


def prepared_copy(
    net: M,
    layers: Iterable[Layer],
    *,
    dtype: torch.dtype,
    device: torch.device,
    compiled: bool = False,
) -> M:
    """A copy of a network that samples faster; the network itself stays as it is.

    The copy shares no memory with the network, holds its convolutions channels last, is in
    evaluation mode and takes no gradients of its weights. The weights of ``layers`` are not copied.

    Args:
        net: The network.
        layers: Those of its layers that are prepared.
        dtype: Type in which the network computes.
        device: Device of the copy.
        compiled: Whether torch.compile comes next.

    Example:
        >>> from edm2lite.network.layers import MPConv, mp_layers
        >>> net = nn.Sequential(MPConv(4, 8), nn.SiLU(), MPConv(8, 4))
        >>> device = torch.device("cpu")
        >>> fast = prepared_copy(net, mp_layers(net), dtype=torch.float32, device=device)
        >>> x = torch.randn(2, 4)
        >>> torch.allclose(fast(x), net(x)), net.training, fast.training
        (True, True, False)
    """
    replaced: dict[int, Any] = {
        id(layer): PreparedConv(_on_device(layer, device), dtype, compiled) for layer in layers
    }
    copied = copy.deepcopy(net, replaced)  # takes the replacement wherever the layer occurs
    copied = copied.to(device).to(memory_format=torch.channels_last)
    return copied.eval().requires_grad_(False)


def _on_device(layer: Layer, device: torch.device) -> Layer:
    """The layer with its weight on the device, channels last; the weight may be shared."""
    weight = layer.weight.detach().to(device)
    if weight.ndim == 4:
        weight = weight.contiguous(memory_format=torch.channels_last)
    moved = nn.Parameter(weight, requires_grad=False)
    return copy.deepcopy(layer, {id(layer.weight): moved})
