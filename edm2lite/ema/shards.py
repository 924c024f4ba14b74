"""Tensors that may be spread over processes (DTensor, as in FSDP2 and tensor parallelism).

A DTensor is recognized by its methods, so that torch.distributed is imported only where there is
one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


def is_sharded(tensor: object) -> bool:
    """Whether this process holds only a part of the tensor.

    Example:
        >>> is_sharded(torch.zeros(3))
        False
    """
    return hasattr(tensor, "to_local")


def local_shard(tensor: Any) -> Tensor:
    """The part of a tensor that this process holds; the tensor itself if it is not sharded.

    Example:
        >>> local_shard(torch.zeros(3)).shape
        torch.Size([3])
    """
    shard: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return shard


def gather(tensors: Mapping[str, Any], dtype: torch.dtype, *, keep: bool) -> dict[str, Tensor]:
    """Copies of the full tensors in host memory.

    Sharded tensors are gathered one at a time. Every rank that holds a shard must call this.

    Args:
        tensors: Name -> tensor, sharded or not.
        dtype: Type of the copies of floating-point tensors; others keep theirs.
        keep: Whether this process keeps the copies; otherwise it only takes part in gathering.

    Returns:
        Name -> copy; empty unless ``keep``.

    Example:
        >>> gather({"w": torch.ones(2)}, torch.float16, keep=True)
        {'w': tensor([1., 1.], dtype=torch.float16)}
    """
    copies = {}
    for name, tensor in tensors.items():
        full = tensor.detach().full_tensor() if is_sharded(tensor) else tensor.detach()
        if keep:
            stored = dtype if full.is_floating_point() else full.dtype
            copies[name] = full.to("cpu", stored, copy=True)
    return copies


def sharded_like(shard: Tensor, tensor: Any) -> Tensor:
    """The tensor whose local shard is ``shard`` and whose layout is that of ``tensor``.

    Nothing is communicated. If ``tensor`` is not sharded, this is ``shard`` itself.

    Example:
        >>> sharded_like(torch.ones(2), torch.zeros(2))
        tensor([1., 1.])
    """
    if not is_sharded(tensor):
        return shard
    from torch.distributed.tensor import DTensor

    stride = torch.empty(tensor.shape, device="meta").stride()
    sharded: Tensor = DTensor.from_local(
        shard.to(tensor.to_local().device),
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=stride,
    )
    return sharded


def distributed_like(full: Tensor, tensor: Any) -> Tensor:
    """A tensor that every process holds as a whole, in the layout of ``tensor``.

    Nothing is communicated. If ``tensor`` is not sharded, this is ``full`` itself.

    Example:
        >>> distributed_like(torch.ones(2), torch.zeros(2))
        tensor([1., 1.])
    """
    if not is_sharded(tensor):
        return full
    from torch.distributed.tensor import distribute_tensor

    on_device = full.to(tensor.to_local().device)
    return distribute_tensor(on_device, tensor.device_mesh, tensor.placements, src_data_rank=None)


def warn_if_ranks_differ(num_refused: int, tensors: Iterable[Any]) -> None:
    """Log a warning if ranks that share these tensors refused different numbers of updates.

    All of them must call this.

    Example:
        >>> warn_if_ranks_differ(3, [torch.zeros(2)])
    """
    counts = values_of_ranks(num_refused, tensors)
    if len(set(counts)) > 1:
        logger.warning(
            "ranks refused different numbers of EMA updates, %s: history is rank 0's", counts
        )


def values_of_ranks(value: int, tensors: Iterable[Any]) -> list[int]:
    """``value`` as it is on every rank that shares these tensors, all of which must call this.

    Example:
        >>> values_of_ranks(3, [torch.zeros(2)])
        [3]
    """
    sharded = [t for t in tensors if is_sharded(t)]
    if not sharded:
        return [value]
    from torch.distributed.tensor import DTensor, Shard

    mesh = sharded[0].device_mesh
    shard = torch.tensor([value], device=local_shard(sharded[0]).device)
    rows = DTensor.from_local(shard, mesh, [Shard(0)] * mesh.ndim, run_check=False)
    values: list[int] = rows.full_tensor().tolist()
    return values


def is_first_rank() -> bool:
    """Whether this is rank 0 of the processes that train together, or the only process.

    Example:
        >>> is_first_rank()
        True
    """
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or (
        distributed.get_rank() == 0
    )


def is_writer(tensors: Iterable[Any]) -> bool:
    """Whether this process writes files: rank 0 of a sharded model, every process of another.

    Example:
        >>> is_writer([torch.zeros(2)])
        True
    """
    meshes = [t.device_mesh for t in tensors if is_sharded(t)]
    return not meshes or meshes[0].get_rank() == 0
