"""Names of the floating-point types in which networks compute and files store their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import torch

Dtype = Literal["float32", "float16", "bfloat16"]
"""Name of a floating-point type."""

DTYPES: tuple[Dtype, ...] = get_args(Dtype)
"""All names, for lists of choices; they load no torch."""


def torch_dtype(name: str) -> torch.dtype:
    """The type of torch that a name stands for.

    Raises:
        ValueError: If it is not one of :data:`DTYPES`.

    Example:
        >>> torch_dtype("bfloat16")
        torch.bfloat16
    """
    import torch

    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype
