"""Operations of a block that keep less memory for the backward pass than those of torch.

They keep what the layers around them keep anyway, and compute the rest again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edm2lite.network.kernels.dispatch import own_kernels_allowed


def modulated_silu(x: Tensor, scale: Tensor) -> Tensor:
    """``silu(x * scale)``; the product is computed again in the backward pass, not kept.

    Args:
        x: [N, C, H, W] features.
        scale: [N, C] factors of the channels, cast to the dtype of ``x``.

    Example:
        >>> modulated_silu(torch.ones(1, 2, 1, 1), torch.tensor([[0.0, 2.0]])).flatten()
        tensor([0.0000, 1.7616])
    """
    scale = scale[:, :, None, None].to(x.dtype)
    if not own_kernels_allowed():
        return F.silu(x * scale)
    y: Tensor = _ModulatedSiLU.apply(x, scale)
    return y


class _ModulatedSiLU(torch.autograd.Function):
    """With z = x scale, ``dy = silu'(z) (dx scale + x dscale)``; z is computed again from x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return F.silu(x * scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, scale = ctx.saved_tensors
        z = x * scale
        if torch.is_grad_enabled():  # for second derivatives, which the kernel does not have
            s = z.sigmoid()
            grad = grad * s * (1 + z * (1 - s))
        else:
            grad = torch.ops.aten.silu_backward(grad, z)
        return grad * scale, (grad * x).sum((2, 3), keepdim=True)


def clip(x: Tensor, limit: float) -> Tensor:
    """``x`` limited to [-limit, limit], with a derivative of 1 everywhere.

    The clip is there for float16 and does nothing to a network that trains as it should. Where it
    clips, the derivative of a clamp is 0; to know where that was, the backward pass would need a
    mask of every block's output, which takes a tenth of the traffic of a compiled training step. A
    derivative of 1 needs nothing, and lets the network come back.

    Example:
        >>> clip(torch.tensor([-3.0, 0.5, 9.0]), 2.0)
        tensor([-2.0000,  0.5000,  2.0000])
    """
    y: Tensor = _Clip.apply(x, limit) if _is_plain_autograd() else F.hardtanh(x, -limit, limit)
    return y


class _Clip(torch.autograd.Function):
    """Clipping that is the identity for gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: float) -> Tensor:
        return x.clamp(-limit, limit)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _is_plain_autograd() -> bool:
    """Whether no transform of torch.func needs an operation that it knows; a graph does not."""
    return torch.compiler.is_compiling() or own_kernels_allowed()
