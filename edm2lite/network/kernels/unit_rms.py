"""Division by the root mean square, the one nonlinear thing that is done to weights and features.

The derivative is written out: autograd's own makes three times the passes over memory, which for
weights is a tenth of a training step on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edm2lite.network.kernels.dispatch import is_plain_autograd

EPS = 1e-4
"""Added to the RMS that normalisation divides by, outside the root."""


def unit_rms(x: Tensor, dim: int | tuple[int, ...], scale: float = 1.0) -> Tensor:
    """``scale * x / (EPS + rms(x))``, RMS over ``dim`` in at least float32 (Eq. 30).

    Returns:
        The shape and dtype of ``x``.
    """
    if not is_plain_autograd():
        return x * _factor(_rms(x, dim), scale).to(x.dtype)
    result: Tensor = _UnitRMS.apply(x, dim, scale)[0]
    return result


def _rms(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    # As fast as memory where torch's vector_norm over an inner dim is not; the tiny term keeps the
    # gradient finite at x = 0.
    return (x.to(_wide(x)).square().mean(dim, keepdim=True) + 1e-24).sqrt()


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _factor(rms: Tensor, scale: float) -> Tensor:
    return scale / (rms + EPS)


class _UnitRMS(torch.autograd.Function):
    """:func:`unit_rms` with its derivative in closed form: a third of the passes over memory.

    With r = rms(x), f = scale / (r + EPS) and <a, b> the mean of a b over ``dim``, a change dx of
    the input changes the outputs y = f x and r by

        dr = <x, dx> / r,    dy = f (dx - x dr / (r + EPS)).

    The second map is symmetric, so it also takes gradients of y back to x. What is kept for it
    costs nothing: a parameter is there anyway; of features y is, because the next layer keeps it,
    and x = y / f. That r is an output with derivatives of its own makes second derivatives right.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dim: int | tuple[int, ...], scale: float
    ) -> tuple[Tensor, Tensor]:
        rms = _rms(x, dim)
        y = x * _factor(rms, scale).to(x.dtype)
        ctx.dim, ctx.scale = dim, scale
        ctx.has_input = isinstance(x, nn.Parameter) or scale == 0
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x if ctx.has_input else y, rms)
        return y, rms

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_rms: Tensor | None) -> tuple[Any, None, None]:
        kept, rms = ctx.saved_tensors  # once: activation checkpointing allows no second look
        factor = _factor(rms, ctx.scale)
        size = 1 if ctx.has_input else factor  # of kept / x
        result = None
        if grad is not None:
            along = (kept * grad).mean(ctx.dim, keepdim=True, dtype=_wide(kept)) * factor
            along = (along / (size**2 * rms * (rms + EPS))).to(kept.dtype)
            result = torch.addcmul(grad * factor.to(kept.dtype), kept, along, value=-1)
        if grad_rms is not None:  # in second derivatives alone
            share = grad_rms * (rms.numel() / kept.numel()) / (rms * size)
            of_rms = (kept * share).to(kept.dtype)
            result = of_rms if result is None else result + of_rms
        return result, None, None
