"""Operations of a block that keep less for their backward pass than torch's own do."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edm2lite.network.kernels.dispatch import is_plain_autograd


def modulated_silu(x: Tensor, scale: Tensor) -> Tensor:
    """``silu(x * scale)`` of x [N, C, H, W], scale [N, C]; only x is kept for the backward pass."""
    scale = scale[:, :, None, None].to(x.dtype)
    if not is_plain_autograd():
        return F.silu(x * scale)
    y: Tensor = _ModulatedSiLU.apply(x, scale)
    return y


class _ModulatedSiLU(torch.autograd.Function):
    """With z = x scale, dy = silu'(z) (dx scale + x dscale); z is computed again."""

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
    """``x`` within [-limit, limit]; the result alone is kept, which the next layer keeps too."""
    if not is_plain_autograd():
        return F.hardtanh(x, -limit, limit)
    y: Tensor = _Clip.apply(x, limit)
    return y


class _Clip(torch.autograd.Function):
    """Gradients pass where the result is inside the limits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: float) -> Tensor:
        y = x.clamp(-limit, limit)
        ctx.limit = limit
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grad, y, -ctx.limit, ctx.limit), None
