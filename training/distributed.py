"""The only file that talks to torch.distributed; works the same without torchrun."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import record

from edm2lite import processes

T = TypeVar("T")
Group = dist.ProcessGroup | None


@contextlib.contextmanager
def process_group() -> Iterator[torch.device]:
    """Join the group that torchrun describes, if any; yields this process's device.

    In a group an uncaught exception ends the process at once, after its traceback: threads that
    wait for other ranks would keep it, and so the whole run, from ending.
    """
    device = processes.device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "RANK" not in os.environ:
        yield device
        return
    _join("nccl" if device.type == "cuda" else "gloo")
    before, sys.excepthook = sys.excepthook, _print_and_leave
    yield device
    sys.excepthook = before
    dist.destroy_process_group()


def _join(backend: str) -> None:
    """Meet the other ranks.

    Note [addresses of the dead]: torchrun (seen in torch 2.14) serves one store to the workers of
    every attempt, and what those of an earlier one left there leads new ones astray. On one node
    all know which attempt it is, so they keep to a part of the store that is new. On several nodes
    they do not, and docs/training.md says what to set.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]:
        dist.init_process_group(backend)
        return
    store, rank, world_size = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"attempt-{attempt}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)


def recorded(function: Callable[[], None]) -> None:
    """Call ``function``; what it raises is also written where torchrun looks for the root cause."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        record(function)()
    else:
        function()


def leave(code: int) -> None:
    """End this process now, without waiting for threads that may wait for other ranks."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _print_and_leave(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    traceback.print_exception(kind, error, trace)
    leave(1)


def is_group() -> bool:
    """Whether torchrun started this process."""
    return dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def host_group() -> Group:
    """A further group of all ranks, for tensors in host memory and for one thread of its own.

    Every rank must make its groups in the same order. None without torchrun.
    """
    if not dist.is_initialized():
        return None
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    return group


def barrier(group: Group = None) -> None:
    if dist.is_initialized():
        dist.barrier(group)


def sum_(value: Tensor) -> Tensor:
    """Sum over ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def max_(value: Tensor) -> Tensor:
    """Largest over ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return value


def start_max_(value: Tensor, group: Group) -> Callable[[], object]:
    """Begin :func:`max_`; ``value`` is ready once the function returned has been called."""
    if group is None:
        return lambda: None
    work = dist.all_reduce(value, dist.ReduceOp.MAX, group=group, async_op=True)
    assert work is not None
    return work.wait


def gather(value: T, group: Group = None) -> list[T]:
    """The values of all ranks, by rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group)
    return values


def from_rank_zero(value: T) -> T:
    """The value that rank 0 has."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]
