"""Lists of tensors as an update of averages takes them: in groups, or all at once on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def grouped(tensors: Sequence[Tensor], alone: int, limit: int) -> list[list[int]]:
    """Indices of small tensors in groups of at most ``limit`` elements, then the others singly.

    Args:
        tensors: All tensors; those of a group are on one device.
        alone: Number of elements from which a tensor is on its own.
        limit: Largest number of elements in a group.

    Example:
        >>> grouped([torch.ones(2), torch.ones(9), torch.ones(1)], alone=5, limit=4)
        [[0, 2], [1]]
    """
    groups: list[list[int]] = []
    size, device = 0, None
    for i, tensor in enumerate(tensors):
        if tensor.numel() >= alone:
            continue
        if size + tensor.numel() > limit or tensor.device != device:
            groups.append([])
            size, device = 0, tensor.device
        groups[-1].append(i)
        size += tensor.numel()
    return groups + [[i] for i, t in enumerate(tensors) if t.numel() >= alone]


def views_like(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Views of a buffer, one after the other, each laid out in memory as its tensor is.

    Args:
        flat: [M] buffer; M is the number of elements of all tensors.
        tensors: Tensors whose shapes and strides the views have. Where elements of a tensor overlap
            or have gaps between them, the view has none.

    Example:
        >>> weight = torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last)
        >>> a, b = views_like(torch.zeros(96 + 5), [weight, torch.ones(5)])
        >>> a.stride() == weight.stride(), b.shape
        (True, torch.Size([5]))
    """
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [_laid_like(part, tensor) for part, tensor in zip(parts, tensors, strict=True)]


def _laid_like(part: Tensor, tensor: Tensor) -> Tensor:
    if tensor.is_contiguous():
        return part.view(tensor.shape)
    dense = torch.empty_like(tensor, device="meta")  # keeps strides without overlap and gaps
    return part.as_strided(tensor.shape, dense.stride(), part.storage_offset())


def row_like(tensor: Tensor, layout: Tensor) -> Tensor:
    """The elements of a tensor, in the order in which those of ``layout`` lie in memory.

    Example:
        >>> row_like(torch.tensor([[1, 2], [3, 4]]), torch.empty(2, 2).mT)
        tensor([1, 3, 2, 4])
    """
    if layout.is_contiguous():
        return tensor.reshape(-1)
    row = torch.empty(tensor.numel(), dtype=tensor.dtype, device=tensor.device)
    row.as_strided(layout.shape, layout.stride()).copy_(tensor)
    return row


def are_alike(averages: Sequence[Tensor], tensors: Sequence[Tensor]) -> bool:
    """Whether :func:`lerp_all_` can be used: float32 tensors that lie in memory as their averages.

    Example:
        >>> average = torch.zeros(4, 3)
        >>> are_alike([average], [torch.ones(4, 3)]), are_alike([average], [torch.ones(3, 4).mT])
        (True, False)
    """
    return all(
        a.dtype == t.dtype == torch.float32 and a.device == t.device and _lie_alike(a, t)
        for a, t in zip(averages, tensors, strict=True)
    )


def _lie_alike(a: Tensor, b: Tensor) -> bool:
    """Whether elements lie in one order; strides of dimensions of one element mean nothing."""
    return a.stride() == b.stride() or (a.is_contiguous() and b.is_contiguous())


def lerp_all_(
    averages: Sequence[Tensor], tensors: Sequence[Tensor], weight: Tensor, refused: Tensor
) -> None:
    """``a += weight * (t - a)`` for all averages, in about as few kernels as memory allows.

    No list operation of torch takes a weight that only the device knows. A fused step of SGD does:
    the "gradient" ``a - t`` is weight decay of 1 and a gradient t that is to be maximized, the
    learning rate is the weight, and like an overflow, ``refused`` keeps all as it is.

    Args:
        averages: float32 tensors, changed in place.
        tensors: As many, see :func:`are_alike`.
        weight: Weight of the tensors, 0-dim float32.
        refused: 1 if nothing is to change, else 0, 0-dim float32.

    Example:
        >>> average, yes, no = torch.zeros(2), torch.tensor(1.0), torch.tensor(0.0)
        >>> lerp_all_([average], [torch.ones(2)], torch.tensor(0.25), no)
        >>> lerp_all_([average], [torch.ones(2)], torch.tensor(0.25), yes)
        >>> average
        tensor([0.2500, 0.2500])
    """
    pairs = [(a, t) for a, t in zip(averages, tensors, strict=True) if a.numel()]
    if pairs:
        torch._fused_sgd_(
            [a for a, _ in pairs],
            [t for _, t in pairs],
            [],
            weight_decay=1.0,
            momentum=0.0,
            lr=weight,
            dampening=0.0,
            nesterov=False,
            maximize=True,
            is_first_step=False,
            found_inf=refused,
        )
