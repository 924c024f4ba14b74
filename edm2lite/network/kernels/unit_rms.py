"""Division by the root mean square: the normalization of weights, pixels, queries and keys.

The derivative is written out, because the one that autograd finds makes three times as many passes
over memory; for the weights alone that is a tenth of a training step on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edm2lite.network.kernels.dispatch import own_kernels_allowed

EPS = 1e-4
"""Added to the RMS that normalization divides by, outside the root."""


def unit_rms(x: Tensor, dim: int | tuple[int, ...], scale: float = 1.0) -> Tensor:
    """``scale * x / (EPS + rms(x))``, with the RMS over ``dim`` in at least float32 (Eq. 30).

    Args:
        x: Tensor of any shape.
        dim: Dimension or dimensions that the root mean square is taken over.
        scale: RMS of the result.

    Returns:
        A tensor of the shape and dtype of ``x``.

    Example:
        >>> unit_rms(torch.tensor([[3.0, 4.0]]), dim=1)
        tensor([[0.8485, 1.1313]])
    """
    if not own_kernels_allowed():
        return x * _factor(_rms(x, dim), scale).to(x.dtype)
    result: Tensor = _UnitRMS.apply(x, dim, scale)[0]
    return result


def _rms(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    # As fast as memory allows, which torch's vector_norm over an inner dim is not; the tiny term
    # keeps the gradient finite at x = 0.
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

    The second map is symmetric, so it also takes gradients of y back to x. What it needs costs no
    memory: a parameter is kept anyway; of features, y is kept by the next layer, and x = y / f. The
    second output r has derivatives of its own, which makes second derivatives right.
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
        kept, rms = ctx.saved_tensors  # read once: activation checkpointing refuses a second read
        factor = _factor(rms, ctx.scale)
        size = 1 if ctx.has_input else factor  # kept / x
        result = None
        if grad is not None:
            along = (kept * grad).mean(ctx.dim, keepdim=True, dtype=_wide(kept)) * factor
            along = (along / (size**2 * rms * (rms + EPS))).to(kept.dtype)
            result = torch.addcmul(grad * factor.to(kept.dtype), kept, along, value=-1)
        if grad_rms is not None:  # only in second derivatives
            share = grad_rms * (rms.numel() / kept.numel()) / (rms * size)
            of_rms = (kept * share).to(kept.dtype)
            result = of_rms if result is None else result + of_rms
        return result, None, None
