"""Adam, the arithmetic it runs in, and what happens to gradients before it takes them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .config import OptimConfig
from .parallel import ParallelLoss


def adam(net: nn.Module, config: OptimConfig, device: torch.device) -> torch.optim.Adam:
    """Adam without weight decay; on a GPU in one fused kernel.

    Args:
        net: The denoiser, on its device; frozen parameters stay as they are.
        config: Learning rate and moments.
        device: Device of the denoiser.
    """
    return torch.optim.Adam(
        [parameter for parameter in net.parameters() if parameter.requires_grad],
        lr=config.ref_lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=device.type == "cuda",
    )


def full_precision(threads: int | None) -> None:
    """Compute float32 products in float32 (no TF32) and sum half-precision ones in float32.

    Args:
        threads: Number of threads on a CPU, or None for as many as torch chooses.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


@dataclass(frozen=True)
class GradientCheck:
    """What the gradient of a step was like.

    Attributes:
        norm: L2 norm of the whole gradient, 0-dim float64.
        finite: Whether every element was finite, 0-dim bool; the same on all ranks.
    """

    norm: Tensor
    finite: Tensor


@torch.no_grad()
def zero_nonfinite_gradients(loss: ParallelLoss, loss_scale: float) -> GradientCheck:
    """Divide gradients by the loss scale and set what is not finite in them to 0.

    Nothing waits for a GPU.

    Args:
        loss: The loss, after its backward passes.
        loss_scale: Factor on the loss during the backward pass.
    """
    grads = [p.grad for p in loss.net.parameters() if p.grad is not None]
    if loss_scale != 1:
        torch._foreach_div_(grads, loss_scale)
    norm = loss.square_norm(grads).sqrt()
    finite = norm.isfinite()
    if norm.device.type != "cpu" or not finite:
        for grad in grads:
            torch.nan_to_num_(grad, nan=0.0, posinf=0.0, neginf=0.0)
    return GradientCheck(norm, finite)
