"""A convolution on a CPU whose weight is stored in the order that the kernel for its input wants.

torch reorders the weight of every convolution in every call, and convolves small inputs on one
thread without oneDNN. Here the weight is reordered once. For inference only.

Compiled graphs call it as an operator of torch (``edm2lite::packed_conv``). The packed weight is
opaque to torch and cannot be an argument of an operator, so the graph passes the number of a
:class:`PackedConv` instead. The number is a tensor: one graph then serves all networks of a shape.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edm2lite.network.kernels.dispatch import own_kernels_allowed
from edm2lite.network.kernels.winograd import filters, input_rows, output_rows


class PackedConv:
    """``conv2d(x, weight)`` of stride 1 and zero padding that keeps the size, float32 on a CPU.

    Args:
        weight: [C_out, C_in / groups, k, l] with odd k and l; a reordered copy is kept.
        x: An input of the shape to come, [N, C_in, H, W].

    Example:
        >>> x, weight = torch.randn(2, 8, 6, 6), torch.randn(4, 8, 3, 3)
        >>> y = PackedConv(weight, x)(x)
        >>> torch.allclose(y, torch.nn.functional.conv2d(x, weight, padding=1), atol=1e-4)
        True
    """

    def __init__(self, weight: Tensor, x: Tensor):
        self._source, self._shape = weight, x.shape
        self._out_shape = self._pack(weight, x)
        number = next(_numbers)
        self._number = torch.tensor(number)
        _by_number[number] = self

    def _pack(self, weight: Tensor, x: Tensor) -> list[int]:
        """Make the reordered copy of the weight; returns the shape of the output."""
        self._padding = [k // 2 for k in weight.shape[2:]]
        self._groups = x.shape[1] // weight.shape[1]
        reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # its stub lacks the arguments
        self._weight: Tensor = reorder(
            weight.to_mkldnn(), self._padding, [1, 1], [1, 1], self._groups, list(x.shape)
        )
        return [len(x), len(weight), *x.shape[2:]]

    @staticmethod
    def serves(x: Tensor) -> bool:
        """Whether packed convolutions can be applied to this input, here and now."""
        if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_grad_enabled():
            return False
        return torch.compiler.is_compiling() or bool(
            torch.backends.mkldnn.is_available()
            and torch.backends.mkldnn.enabled
            and own_kernels_allowed()
        )

    def fits(self, weight: Tensor, x: Tensor) -> bool:
        """Whether this was made of this weight for inputs of this shape: kernels differ."""
        return weight is self._source and x.shape == self._shape

    def __call__(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H, W], channels last."""
        if torch.compiler.is_compiling():
            y: Tensor = torch.ops.edm2lite.packed_conv(x, self._number, self._out_shape)
            return y
        return self.run(x)

    def run(self, x: Tensor) -> Tensor:
        """The convolution by its kernel, which a compiled graph sees as one operation."""
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._weight, None, self._padding, [1, 1], [1, 1], self._groups, "none", [], ""
        )
        return y


class PackedUpConv(PackedConv):
    """``conv_transpose2d(x, weight, stride=2, padding=1)``, which doubles height and width.

    Args:
        weight: [C_in, C_out, 4, 4].
        x: An input of the shape to come, [N, C_in, H, W].

    Example:
        >>> x, weight = torch.randn(2, 8, 6, 6), torch.randn(8, 4, 4, 4)
        >>> PackedUpConv(weight, x)(x).shape
        torch.Size([2, 4, 12, 12])
    """

    def _pack(self, weight: Tensor, x: Tensor) -> list[int]:
        self._weight = torch.ops.mkldnn._reorder_convolution_transpose_weight(
            weight.contiguous(), [1, 1], [0, 0], [2, 2], [1, 1], 1, list(x.shape)
        )
        return [len(x), weight.shape[1], 2 * x.shape[2], 2 * x.shape[3]]

    def run(self, x: Tensor) -> Tensor:
        """The transposed convolution by its kernel."""
        y: Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
            x, self._weight, None, [1, 1], [0, 0], [2, 2], [1, 1], 1, "none", [], ""
        )
        return y


class PackedWinograd(PackedConv):
    """``winograd_conv2d(x, weight)`` with its filters transformed and packed once.

    Args:
        weight: [C_out, C_in, 3, 3].
        x: An input of the shape to come, [N, C_in, H, W] with H a multiple of 4.

    Example:
        >>> x, weight = torch.randn(2, 8, 8, 6), torch.randn(4, 8, 3, 3)
        >>> y = PackedWinograd(weight, x)(x)
        >>> torch.allclose(y, torch.nn.functional.conv2d(x, weight, padding=1), atol=1e-4)
        True
    """

    def __init__(self, weight: Tensor, x: Tensor):
        super().__init__(filters(weight), input_rows(x))
        self._source, self._shape = weight, x.shape

    def __call__(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H, W], channels last."""
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
