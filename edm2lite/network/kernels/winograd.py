"""3x3 convolutions with half the multiplications: Winograd's F(4, 3) along columns, for CPUs.

Four rows of the output depend on six rows of the input. Computed directly, they take twelve
products of a row of the input with a row of the filter. Here both are seen as polynomials in the
row, which are multiplied by multiplying their values at six points (Toom and Cook; Winograd 1980;
Lavin and Gray, arXiv 1509.09308):

    y = A^T [(G w) * (B^T x)],    x: 6 rows, w: 3 rows, y: 4 rows, * a convolution along the row.

The points 0, +-1/sqrt(2), +-sqrt(2), infinity keep the rounding errors of float32 near those of
direct sums: for 64 channels and outputs of RMS 1 they are 5e-7, those of direct sums in oneDNN
4e-7; with the usual points 0, +-1, +-2 they would be 8e-7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

PRODUCTS = 6
"""Number of 1x3 convolutions, each over a quarter of the rows, that replace one of 3x3."""

_HAS_ONEDNN = torch.backends.mkldnn.is_available()

_P, _Q = math.sqrt(0.5), math.sqrt(2)  # the points; P Q = 1 and P^2 + Q^2 = 5/2

_INPUT = (  # B^T: coefficients of a polynomial that is 0 at all finite points but its own
    (1, 0, -2.5, 0, 1, 0),
    (0, -_Q, -2, _P, 1, 0),
    (0, _Q, -2, -_P, 1, 0),
    (0, -_P, -0.5, _Q, 1, 0),
    (0, _P, -0.5, -_Q, 1, 0),
    (0, 1, 0, -2.5, 0, 1),
)
_FILTER = (  # G: powers 0 to 2 of each point over the value there of its polynomial
    (1, 0, 0),
    (-2 / 3, -2 / 3 * _P, -1 / 3),
    (-2 / 3, 2 / 3 * _P, -1 / 3),
    (1 / 6, 1 / 6 * _Q, 1 / 3),
    (1 / 6, -1 / 6 * _Q, 1 / 3),
    (0, 0, 1),
)
_OUTPUT = (  # A^T: powers 0 to 3 of each point
    (1, 1, 1, 1, 1, 0),
    (0, _P, -_P, _Q, -_Q, 0),
    (0, 0.5, 0.5, 2, 2, 0),
    (0, _P / 2, -_P / 2, 2 * _Q, -2 * _Q, 1),
)


def winograd_is_faster(x: Tensor, weight: Tensor, *, prepared: bool = False) -> bool:
    """Whether :func:`winograd_conv2d` can be used in a compiled graph and is faster there.

    It is for float32 on a CPU and 64 channels or more, as measured (docs/performance.md). Outside a
    graph its transforms take as long as they save. Filters that are not ``prepared`` are
    transformed in every call, which takes passes over the weights: for wide layers on few rows
    these, and the time to compile them, cost more than is saved.

    Args:
        x: [N, C_in, H, W] input of the convolution.
        weight: [C_out, C_in, k, k] weight of the convolution.
        prepared: Whether the filters are transformed once for all calls.

    Example:
        >>> winograd_is_faster(torch.empty(1, 8, 16, 16), torch.empty(8, 8, 3, 3))  # few channels
        False
    """
    return (
        weight.shape[2:] == (3, 3)
        and min(weight.shape[:2]) >= 64
        and (prepared or max(weight.shape[:2]) <= 320)
        and x.shape[2] >= (8 if prepared else 16)
        and x.shape[2] % 4 == 0
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and _HAS_ONEDNN
    )


def winograd_conv2d(x: Tensor, weight: Tensor) -> Tensor:
    """``F.conv2d(x, weight, padding=1)``, channels last.

    Args:
        x: [N, C_in, H, W] with H a multiple of 4.
        weight: [C_out, C_in, 3, 3].

    Returns:
        [N, C_out, H, W].

    Example:
        >>> x, weight = torch.randn(2, 3, 8, 5), torch.randn(4, 3, 3, 3)
        >>> y = winograd_conv2d(x, weight)
        >>> torch.allclose(y, F.conv2d(x, weight, padding=1), atol=1e-4)
        True
    """
    if torch.compiler.is_compiling() and torch.is_grad_enabled():
        # The graph keeps x and computes the rows again in the backward pass: they are half larger.
        rows: Tensor = checkpoint(input_rows, x, use_reentrant=False, preserve_rng_state=False)
    else:
        rows = input_rows(x)
    return output_rows(F.conv2d(rows, filters(weight), padding=(0, 1), groups=PRODUCTS))


def input_rows(x: Tensor) -> Tensor:
    """B^T x: [N, C, H, W] -> [N, 6 C, H/4, W], the inputs of the six filters."""
    x0, x1, x2, x3 = x.permute(0, 2, 3, 1).unflatten(1, (-1, 4)).unbind(2)
    rows = [_delayed(x3), x0, x1, x2, x3, _advanced(x0)]
    return torch.stack(_sums(_INPUT, rows), 3).flatten(3).permute(0, 3, 1, 2)


def filters(weight: Tensor) -> Tensor:
    """G w: [C_out, C_in, 3, 3] -> [6 C_out, C_in, 1, 3], in groups of C_out."""
    return torch.stack(_sums(_FILTER, weight.unbind(2))).flatten(0, 1).unsqueeze(2)


def output_rows(products: Tensor) -> Tensor:
    """A^T applied to the products: [N, 6 C, H/4, W] -> [N, C, H, W]."""
    rows = products.permute(0, 2, 3, 1).unflatten(3, (PRODUCTS, -1)).unbind(3)
    return torch.stack(_sums(_OUTPUT, rows), 2).flatten(1, 2).permute(0, 3, 1, 2)


def _delayed(rows: Tensor) -> Tensor:
    """[N, T, W, C] with every row moved to the place of the next, zeros in the first."""
    return F.pad(rows[:, :-1], (0, 0, 0, 0, 1, 0))


def _advanced(rows: Tensor) -> Tensor:
    """[N, T, W, C] with every row moved to the place of the one before, zeros in the last."""
    return F.pad(rows[:, 1:], (0, 0, 0, 0, 0, 1))


def _sums(matrix: Sequence[Sequence[float]], parts: Sequence[Tensor]) -> list[Tensor]:
    """The product of a matrix and a vector of tensors; entries of 0 are skipped."""
    return [_weighted_sum(row, parts) for row in matrix]


def _weighted_sum(factors: Sequence[float], parts: Sequence[Tensor]) -> Tensor:
    terms = [(f, part) for f, part in zip(factors, parts, strict=True) if f]
    terms.sort(key=lambda term: term[0] != 1)  # begin with a term that needs no product
    (factor, part), *rest = terms
    total = part if factor == 1 else part * factor
    for factor, part in rest:
        total = torch.add(total, part, alpha=factor)
    return total
