"""Adam, the arithmetic it runs in, and what happens to gradients before it takes them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .config import OptimConfig
from .parallel import Shared


def adam(net: nn.Module, config: OptimConfig, device: torch.device) -> torch.optim.Adam:
    """Adam without weight decay; on a GPU in one fused kernel."""
    return torch.optim.Adam(
        net.parameters(),
        lr=config.ref_lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=device.type == "cuda",
    )


def full_precision() -> None:
    """Let float32 products be float32 (no TF32), and half-precision products add up in float32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


@dataclass(frozen=True)
class GradientCheck:
    """Attributes:
    norm: L2 norm of the whole gradient, 0-dim float64.
    finite: Whether every element was finite, 0-dim bool; the same on all ranks.
    """

    norm: Tensor
    finite: Tensor


@torch.no_grad()
def mend_gradients(shared: Shared, loss_scale: float) -> GradientCheck:
    """Take the loss scale off, and set NaN and infinite gradients to 0; never asks a GPU."""
    grads = [p.grad for p in shared.net.parameters() if p.grad is not None]
    if loss_scale != 1:
        torch._foreach_div_(grads, loss_scale)
    norm = shared.square_norm(grads).sqrt()
    finite = norm.isfinite()
    if norm.device.type != "cpu" or not finite:
        for grad in grads:
            torch.nan_to_num_(grad, nan=0.0, posinf=0.0, neginf=0.0)
    return GradientCheck(norm, finite)
