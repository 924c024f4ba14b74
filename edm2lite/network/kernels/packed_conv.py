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
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edm2lite.network.kernels.dispatch import is_plain_autograd
from edm2lite.network.kernels.winograd import filters, input_rows, output_rows


class PackedConv:
    """``conv2d(x, weight)`` of stride 1 and zero padding that keeps the size, float32 on a CPU.

    Args:
        weight: [C_out, C_in / groups, k, l] with odd k and l; a copy is kept.
        x: An input of the shape that will come, [N, C_in, H, W].
    """

    def __init__(self, weight: Tensor, x: Tensor):
        self._source, self._shape = weight, x.shape
        self._out_shape = self._pack(weight, x)
        number = next(_numbers)
        self._number = torch.tensor(number)
        _by_number[number] = self

    def _pack(self, weight: Tensor, x: Tensor) -> list[int]:
        """Make the copy; returns the shape of the output."""
        self._padding = [k // 2 for k in weight.shape[2:]]
        self._groups = x.shape[1] // weight.shape[1]
        reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # its stub lacks the arguments
        self._weight: Tensor = reorder(
            weight.to_mkldnn(), self._padding, [1, 1], [1, 1], self._groups, list(x.shape)
        )
        return [len(x), len(weight), *x.shape[2:]]

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
            y: Tensor = torch.ops.edm2lite.packed_conv(x, self._number, self._out_shape)
            return y
        return self.run(x)

    def run(self, x: Tensor) -> Tensor:
        """The kernel itself, which a compiled graph sees as one operation."""
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._weight, None, self._padding, [1, 1], [1, 1], self._groups, "none", [], ""
        )
        return y


class PackedUpConv(PackedConv):
    """``conv_transpose2d(x, weight, stride=2, padding=1)``, of twice the size.

    Args:
        weight: [C_in, C_out, 4, 4].
        x: An input of the shape that will come.
    """

    def _pack(self, weight: Tensor, x: Tensor) -> list[int]:
        self._weight = torch.ops.mkldnn._reorder_convolution_transpose_weight(
            weight.contiguous(), [1, 1], [0, 0], [2, 2], [1, 1], 1, list(x.shape)
        )
        return [len(x), weight.shape[1], 2 * x.shape[2], 2 * x.shape[3]]

    def run(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
            x, self._weight, None, [1, 1], [0, 0], [2, 2], [1, 1], 1, "none", [], ""
        )
        return y


class PackedWinograd(PackedConv):
    """``winograd_conv2d(x, weight)``; its filters are computed once too."""

    def __init__(self, weight: Tensor, x: Tensor):
        super().__init__(filters(weight), input_rows(x))
        self._source, self._shape = weight, x.shape

    def __call__(self, x: Tensor) -> Tensor:
        return output_rows(super().__call__(input_rows(x)))


_numbers = itertools.count()
_by_number: weakref.WeakValueDictionary[int, PackedConv] = weakref.WeakValueDictionary()
_library = torch.library.Library("edm2lite", "DEF")
_library.define("packed_conv(Tensor x, Tensor number, SymInt[] shape) -> Tensor")


def _run(x: Tensor, number: Tensor, shape: Sequence[int]) -> Tensor:
    return _by_number[int(number)].run(x)


def _shape_only(x: Tensor, number: Tensor, shape: Sequence[int]) -> Tensor:
    n, c, h, w = shape
    return x.new_empty(n, h, w, c).permute(0, 3, 1, 2)


_library.impl("packed_conv", _run, "CPU")
torch.library.register_fake("edm2lite::packed_conv", _shape_only, lib=_library)
