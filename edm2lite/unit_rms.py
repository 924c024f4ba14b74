"""Division by the root mean square, the one nonlinear thing that is done to weights and features.

The derivative is written out: autograd's own makes three times the passes over memory, which for
weights is a tenth of a training step on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EPS = 1e-4
"""Added to the RMS that normalisation divides by, outside the root."""


def unit_rms(x: Tensor, dim: int | tuple[int, ...], scale: float = 1.0) -> Tensor:
    """``scale * x / (EPS + rms(x))``, RMS over ``dim`` in at least float32 (Eq. 30).

    Returns:
        The shape and dtype of ``x``.
    """
    if torch.compiler.is_compiling():  # which derives and fuses the same by itself
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
    the input changes the outputs by

        dr = <x, dx> / r,    dy = f (dx - x dr / (r + EPS)).

    The second map is symmetric, so it also takes gradients of y back to x. That r is an output with
    derivatives of its own makes second derivatives right.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, dim: int | tuple[int, ...], scale: float) -> tuple[Tensor, Tensor]:
        rms = _rms(x, dim)
        return x * _factor(rms, scale).to(x.dtype), rms

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.dim, ctx.scale = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, output[1])
        ctx.save_for_forward(x, output[1])

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, _dim: None, _scale: None) -> tuple[Tensor, Tensor]:
        x, rms = ctx.saved_tensors
        return _changes(x, rms, dx, ctx.dim, ctx.scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_rms: Tensor | None) -> tuple[Any, None, None]:
        x, rms = ctx.saved_tensors  # once: activation checkpointing allows no second look
        result = None if grad is None else _changes(x, rms, grad, ctx.dim, ctx.scale)[0]
        if grad_rms is not None:  # in second derivatives alone
            of_rms = (x * (grad_rms * (rms.numel() / x.numel()) / rms)).to(x.dtype)
            result = of_rms if result is None else result + of_rms
        return result, None, None


def _changes(
    x: Tensor, rms: Tensor, dx: Tensor, dim: int | tuple[int, ...], scale: float
) -> tuple[Tensor, Tensor]:
    change = (x * dx).mean(dim, keepdim=True, dtype=_wide(x)) / rms
    factor = _factor(rms, scale)
    along = (factor * change / (rms + EPS)).to(x.dtype)
    return torch.addcmul(dx * factor.to(x.dtype), x, along, value=-1), change
