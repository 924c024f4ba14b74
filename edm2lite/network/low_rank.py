"""Changes of a weight as products of two thin matrices (LoRA): their sum, and how to find them.

A layer that computes with W can be changed to W + s B A, where A (``down``) has r rows and B
(``up``) has r columns. For a convolution, A is a convolution to r channels, and B mixes those; as
matrices, W is [out, in * k * k]. Nothing here knows of files, nor of what is done with the sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """The two factors of a change of the weight of one layer, ``scale * up @ down``.

    Attributes:
        down: A, [r, in] of a linear layer or [r, in, k, k] of a convolution.
        up: B, [out, r]; [out, r, 1, 1] means the same.
        scale: Factor s of the product, alpha / r.

    Example:
        >>> change = Factors(torch.ones(2, 4, 3, 3), torch.ones(8, 2), scale=0.5)
        >>> change.rank, change.shape, change.delta()[0, 0, 0, 0].item()
        (2, (8, 4, 3, 3), 1.0)
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """Number r of rows of ``down``."""
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that is changed: [out, in] or [out, in, k, k]."""
        return (self.up.shape[0], *self.down.shape[1:])

    @property
    def num_values(self) -> int:
        """Number of values of both factors."""
        return self.down.numel() + self.up.numel()

    def delta(self) -> Tensor:
        """``scale * up @ down``, [out, in] or [out, in, k, k], in float32 at least."""
        dtype = torch.promote_types(self.down.dtype, torch.float32)
        product = self.up.to(dtype).flatten(1) @ self.down.to(dtype).flatten(1)
        return (product * self.scale).reshape(self.shape)

    def scaled(self, strength: float) -> Factors:
        """The same change, ``strength`` times as large."""
        return self._replace(scale=self.scale * strength)


def added(changes: Sequence[Factors]) -> Factors:
    """The sum of several changes of one weight: its rank is the sum of their ranks.

    Args:
        changes: At least one; all of one shape.

    Raises:
        ValueError: If there is none, or the shapes differ.

    Example:
        >>> one = Factors(torch.ones(1, 3), torch.ones(2, 1))
        >>> both = added([one, one.scaled(-1.0)])
        >>> both.rank, both.delta().abs().max().item()
        (2, 0.0)
    """
    if len({change.shape for change in changes}) != 1:
        raise ValueError(
            "changes to add must be of one weight, got the shapes"
            f" {', '.join(str(list(c.shape)) for c in changes) or 'of none'}"
        )
    if len(changes) == 1:
        return changes[0]
    up = torch.cat([change.up.flatten(1) * change.scale for change in changes], dim=1)
    return Factors(torch.cat([change.down for change in changes]), up)


@dataclass(frozen=True, eq=False)
class Factorization:
    """The best approximation of a matrix by one of low rank, and how good it is.

    Attributes:
        change: The factors. Rows of ``down`` have RMS 1 and are orthogonal, so that ``up`` carries
            the size; directions that the matrix does not have are rows with zeros in ``up``.
        error: Norm of what is missing, relative to that of the matrix (Frobenius), in 0..1.
    """

    change: Factors
    error: float


def factorize(
    delta: Tensor, rank: int | None = None, *, max_error: float | None = None
) -> Factorization:
    """The change of lowest error of a given rank, or of lowest rank with a given error.

    It is the truncated singular value decomposition of the weight as a matrix [out, in * k * k]
    (Eckart and Young), computed in float64; the relative error of rank r is
    ``sqrt(sum_{i > r} s_i**2 / sum_i s_i**2)``.

    Args:
        delta: [out, in] or [out, in, k, k], finite.
        rank: Rank of the result; lowered to the largest that the shape allows.
        max_error: Largest relative error, in [0, 1), in place of a rank.

    Returns:
        Factors in the dtype of ``delta``, and their error.

    Raises:
        ValueError: If not exactly one of rank and error is given, either is out of range, or values
            are not finite.

    Example:
        >>> delta = torch.diag(torch.tensor([3.0, 4.0, 0.0]))
        >>> factorize(delta, rank=1).error
        0.6
        >>> factorize(delta, max_error=0.1).change.rank
        2
    """
    if (rank is None) == (max_error is None):
        raise ValueError("either rank or max_error must be given, got both or none of them")
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    if max_error is not None and not 0 <= max_error < 1:
        raise ValueError(f"max_error must lie in [0, 1), got {max_error}")
    if not delta.isfinite().all():
        raise ValueError("a matrix to factorize must be finite, it has NaN or infinite values")
    matrix = delta.detach().double().flatten(1)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    errors = _errors(s)
    if rank is None:
        assert max_error is not None
        # the last error is 0 by definition; rounding must not hide that
        rank = max(1, int((errors <= max_error).nonzero()[0]))
    rank = min(rank, len(s))
    length = math.sqrt(matrix.shape[1])
    down = (vt[:rank] * length).to(delta.dtype).unflatten(1, delta.shape[1:])
    up = (u[:, :rank] * (s[:rank] / length)).to(delta.dtype)
    return Factorization(Factors(down, up), float(errors[rank]))


def _errors(s: Tensor) -> Tensor:
    """[n + 1] relative errors of the ranks 0 to n, from n singular values; 0 for a zero matrix."""
    tails = s.square().flip(0).cumsum(0).flip(0)
    tails = torch.cat([tails, tails.new_zeros(1)])
    return (tails / tails[0].clamp_min(torch.finfo(tails.dtype).tiny)).sqrt()
