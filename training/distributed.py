"""The only file that talks to torch.distributed; works the same without torchrun."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@contextlib.contextmanager
def process_group() -> Iterator[torch.device]:
    """Join the group that torchrun describes, if any; yields this process's device."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "RANK" not in os.environ:
        yield device
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def is_group() -> bool:
    """Whether torchrun started this process."""
    return dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def sum_(value: Tensor) -> Tensor:
    """Sum over ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def from_rank_zero(value: str) -> str:
    """The value that rank 0 has."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def replicate(module: nn.Module, device: torch.device) -> nn.Module:
    """``module`` with its gradients averaged over ranks; itself when there is one."""
    if not dist.is_initialized():
        return module
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)


@contextlib.contextmanager
def gradients_kept(module: nn.Module) -> Iterator[None]:
    """Backward passes within the block add up gradients without averaging them over ranks."""
    if isinstance(module, DistributedDataParallel):
        with module.no_sync():
            yield
    else:
        yield
