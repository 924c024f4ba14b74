"""A convolution on a CPU whose weight already lies as the kernel for its input wants it.

torch brings the weight of every convolution into that order in every call, and convolves small
inputs on one thread without oneDNN at all. Here the order is made once. For inference only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class PackedConv:
    """``conv2d(x, weight)`` of stride 1 and zero padding that keeps the size, float32 on a CPU.

    Args:
        weight: [C_out, C_in, k, k] with odd k; a copy is kept.
        x: An input of the shape that will come.
    """

    def __init__(self, weight: Tensor, x: Tensor):
        self._padding = [weight.shape[-1] // 2] * 2
        self._shape = x.shape
        reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # its stub lacks the arguments
        self._weight: Tensor = reorder(
            weight.to_mkldnn(), self._padding, [1, 1], [1, 1], 1, list(x.shape)
        )

    @staticmethod
    def serves(x: Tensor) -> bool:
        """Whether it can be used for this input."""
        return bool(
            x.device.type == "cpu"
            and x.dtype == torch.float32
            and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and torch.backends.mkldnn.is_available()
            and torch.backends.mkldnn.enabled
            and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        )

    def fits(self, x: Tensor) -> bool:
        """Whether it was made for inputs of this shape; the kernels of others differ."""
        return x.shape == self._shape

    def __call__(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H, W], channels last."""
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._weight, None, self._padding, [1, 1], [1, 1], 1, "none", [], ""
        )
        return y
