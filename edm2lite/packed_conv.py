"""A convolution on a CPU whose weight already lies as the kernel for its input wants it.

torch brings the weight of every convolution into that order in every call, and convolves small
inputs on one thread without oneDNN at all. Here the order is made once. For inference only.

Compiled graphs call it through an operator of torch's (``edm2lite::packed_conv``), which cannot
take the weight, because it is opaque to torch: it takes the number of a :class:`PackedConv`. The
number is a tensor, so that one graph serves all networks of a shape.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import torch
from torch import Tensor

from edm2lite.plain_autograd import is_plain_autograd


class PackedConv:
    """``conv2d(x, weight)`` of stride 1 and zero padding that keeps the size, float32 on a CPU.

    Args:
        weight: [C_out, C_in, k, k] with odd k; a copy is kept.
        x: An input of the shape that will come.
    """

    def __init__(self, weight: Tensor, x: Tensor):
        self._padding = [weight.shape[-1] // 2] * 2
        self._source, self._shape, self._channels = weight, x.shape, len(weight)
        reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # its stub lacks the arguments
        self._weight: Tensor = reorder(
            weight.to_mkldnn(), self._padding, [1, 1], [1, 1], 1, list(x.shape)
        )
        number = next(_numbers)
        self._number = torch.tensor(number)
        _by_number[number] = self

    @staticmethod
    def serves(x: Tensor) -> bool:
        """Whether it can be used for this input."""
        if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_grad_enabled():
            return False
        return torch.compiler.is_compiling() or bool(
            torch.backends.mkldnn.is_available()
            and torch.backends.mkldnn.enabled
            and is_plain_autograd()
        )

    def fits(self, weight: Tensor, x: Tensor) -> bool:
        """Whether it was made of this weight for inputs of this shape; kernels differ."""
        return weight is self._source and x.shape == self._shape

    def __call__(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H, W], channels last."""
        if torch.compiler.is_compiling():
            y: Tensor = torch.ops.edm2lite.packed_conv(x, self._number, self._channels)
            return y
        return self.run(x)

    def run(self, x: Tensor) -> Tensor:
        """The same, outside compiled graphs."""
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._weight, None, self._padding, [1, 1], [1, 1], 1, "none", [], ""
        )
        return y


_numbers = itertools.count()
_by_number: weakref.WeakValueDictionary[int, PackedConv] = weakref.WeakValueDictionary()
_library = torch.library.Library("edm2lite", "DEF")
_library.define("packed_conv(Tensor x, Tensor number, int channels) -> Tensor")


def _run(x: Tensor, number: Tensor, channels: int) -> Tensor:
    return _by_number[int(number)].run(x)


def _shape_only(x: Tensor, number: Tensor, channels: int) -> Tensor:
    n, _, h, w = x.shape
    return x.new_empty(n, h, w, channels).permute(0, 3, 1, 2)


_library.impl("packed_conv", _run, "CPU")
torch.library.register_fake("edm2lite::packed_conv", _shape_only, lib=_library)
