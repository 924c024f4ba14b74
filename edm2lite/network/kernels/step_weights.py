"""Weights of a training step: normalized, cast and laid out once, not for every micro-batch.

The weights w of a network change once per step. What its layers compute with, v = normalize(w) in
the type and order of the kernels, is therefore the same in all micro-batches of a step, and the
gradient by w is a linear function of the gradient by v. So the micro-batches run on a copy of the
network that holds v; gradients by v are summed in float32, and brought back to w at the end:

    refresh:  v = normalize(w)
    collect:  s = s + dL/dv      after each micro-batch
    project:  dL/dw = s dv/dw    by autograd, once
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from edm2lite.network.kernels.prepared import Layer

M = TypeVar("M", bound=nn.Module)


class StepWeights(Generic[M]):
    """The copy of a network that the micro-batches of a step run on, and the way back.

    The copy has weights of its own for the given layers, and shares everything else with the
    network: other parameters and all buffers. A layer takes part whatever its stored weight is made
    of: the gradient arrives at all trained parameters of the layer, those of an adapter too.

    Attributes:
        net: The copy. Call :meth:`refresh` before its first micro-batch, :meth:`collect` after the
            backward pass of each, and :meth:`project` after the last.
        normalized: The module that computes the weights of the copy.
        sums: Sums of the gradients of all micro-batches, one tensor of float32; processes that
            share a batch average it before :meth:`project`.

    Args:
        net: The network, on its device.
        layers: Those of its layers that take part.
        dtype: Type in which the network computes. Matrices are kept in float32, because embeddings
            are computed in it, and cast where the input is of another type.

    Example:
        >>> from edm2lite.network.layers import MPConv, mp_layers
        >>> net, x = nn.Sequential(MPConv(4, 8), nn.SiLU(), MPConv(8, 2)), torch.randn(3, 4)
        >>> step = StepWeights(net, mp_layers(net), torch.float32)
        >>> step.refresh()
        >>> step.net(x).square().sum().backward()
        >>> step.collect(is_first=True)
        >>> step.project()
        >>> found = net[0].weight.grad
        >>> net.zero_grad()
        >>> net(x).square().sum().backward()
        >>> torch.allclose(found, net[0].weight.grad, atol=1e-5)
        True
    """

    def __init__(self, net: M, layers: Iterable[Layer], dtype: torch.dtype):
        layers = list(layers)
        copies = [StepConv(layer, dtype) for layer in layers]
        kept: dict[int, Any] = {id(t): t for t in (*net.parameters(), *net.buffers())}
        kept.update({id(layer): own for layer, own in zip(layers, copies, strict=True)})
        self.net: M = copy.deepcopy(net, kept)
        self._weights: list[Tensor] = [own.weight for own in copies]
        self.normalized = Normalized(layers, self._weights)
        trained = [p for p in self.net.parameters() if p.requires_grad]
        sizes = [p.numel() for p in trained]
        self.sums = torch.zeros(sum(sizes), device=next(net.parameters()).device)
        starts = itertools.accumulate(sizes, initial=0)
        self._trained = [
            (p, self.sums.as_strided(p.shape, p.stride(), start))
            for p, start in zip(trained, starts, strict=False)
        ]
        self._summed: list[tuple[nn.Parameter, Tensor]] = []

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the weights of the network into the copy, as they are now."""
        if self._weights:
            torch._foreach_copy_(self._weights, self.normalized(as_copies=True))

    @torch.no_grad()
    def collect(self, is_first: bool) -> None:
        """Add the gradients of the copy to the sums, and remove them.

        Args:
            is_first: Whether they are those of the first micro-batch of a step, which begins sums.
        """
        if is_first:
            self.sums.zero_()
            self._summed = []
        before = {id(p) for p, _ in self._summed}
        found = [(p, p.grad, total) for p, total in self._trained if p.grad is not None]
        if found:  # a part of the network may have no gradient in a micro-batch
            torch._foreach_add_([total for _, _, total in found], [grad for _, grad, _ in found])
        self._summed += [(p, total) for p, _, total in found if id(p) not in before]
        for p, _, _ in found:
            p.grad = None

    def project(self) -> None:
        """Add the sums to the gradients of the parameters that the copy is made of."""
        totals = {id(p): total for p, total in self._summed}
        copied = {id(own) for own in self._weights}
        for p, total in self._summed:
            if id(p) not in copied:  # copy and network share it
                p.grad = total.to(p.dtype)
        if not copied.isdisjoint(totals):
            made = zip(self.normalized(as_copies=False), self._weights, strict=True)
            roots = [(w, totals[id(own)]) for w, own in made if id(own) in totals]
            torch.autograd.backward([w for w, _ in roots], [total for _, total in roots])


class StepConv(nn.Module):
    """A layer whose weight is normalized already, called like the layer that it stands for.

    Args:
        layer: The layer.
        dtype: Type of the weight of a convolution.

    Example:
        >>> from edm2lite.network.layers import MPConv
        >>> layer, x = MPConv(8, 4, (3, 3)), torch.randn(2, 8, 16, 16)
        >>> torch.allclose(StepConv(layer, torch.float32)(x, gain=2), layer(x, gain=2), atol=1e-5)
        True
    """

    def __init__(self, layer: Layer, dtype: torch.dtype):
        super().__init__()
        weight = layer.normalized_weight(torch.float32)
        made = in_order(weight.detach(), torch.float32 if weight.ndim == 2 else dtype)
        self.weight = nn.Parameter(made.clone(), requires_grad=weight.requires_grad)
        self._convolve = layer.convolve

    def forward(self, x: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        """The output of the layer."""
        y = self._convolve(x, self.weight.to(x.dtype))
        if isinstance(gain, Tensor) or gain != 1:
            y = (y * gain).to(x.dtype)  # features are fewer than weights where there is a gain
        return y


class Normalized(nn.Module):
    """The normalized weights of some layers, as one module that can be compiled.

    Args:
        layers: The layers.
        copies: Tensors that have the types and orders of their copies.

    Example:
        >>> from edm2lite.network.layers import MPConv
        >>> layer = MPConv(8, 4, (3, 3))
        >>> (weight,) = Normalized([layer], [layer.weight.bfloat16()])(as_copies=True)
        >>> weight.dtype
        torch.bfloat16
    """

    def __init__(self, layers: Iterable[Any], copies: Iterable[Tensor]):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._dtypes = [t.dtype for t in copies]

    def forward(self, *, as_copies: bool) -> list[Tensor]:
        """A weight for each layer: in float32, or in the type and order of its copy."""
        layers: list[Any] = list(self.layers)
        made = [layer.normalized_weight(torch.float32) for layer in layers]
        if not as_copies:
            return made
        return [in_order(w, dtype) for w, dtype in zip(made, self._dtypes, strict=True)]


def in_order(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight in the type and the order of memory that convolutions of a GPU take it in.

    Example:
        >>> in_order(torch.ones(4, 8, 3, 3), torch.bfloat16).stride()
        (72, 1, 24, 8)
    """
    last = torch.channels_last if weight.ndim == 4 else torch.contiguous_format
    return weight.to(dtype, memory_format=last)
