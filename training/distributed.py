"""Processes of a run: joining them, exchanging values, ending; the same without torchrun.

The only module of the trainer in which processes talk to each other. What else it uses of
torch.distributed is not communication of its own: sharding (parallel.py), the format of checkpoints
(checkpoint.py, state.py) and copies of shards (staging.py).
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.rendezvous import rendezvous

from edm2lite import processes
from edm2lite.messages import one_line

T = TypeVar("T")
Group = dist.ProcessGroup | None


TIMEOUT = timedelta(minutes=30)
"""How long ranks wait for each other; compiling, or fetching a model, takes one of them minutes."""


class RankZeroError(RuntimeError):
    """Raised by all other ranks where one cannot go on without what rank 0 failed to do."""


@contextlib.contextmanager
def process_group() -> Iterator[torch.device]:
    """Join the group that torchrun describes, if any, and yield the device of this process.

    In a group an uncaught exception ends the process at once, after its traceback: threads that
    wait for other ranks would keep it, and so the whole run, from ending. A process whose torchrun
    has died stops, as :func:`edm2lite.processes.watch_launcher` says.
    """
    processes.watch_launcher()
    device = processes.device()
    if "RANK" not in os.environ:
        yield device
        return
    _join(device)
    before, sys.excepthook = sys.excepthook, _print_and_leave
    yield device
    sys.excepthook = before
    dist.destroy_process_group()


def _join(device: torch.device) -> None:
    """Meet the other ranks.

    Note [addresses of the dead]: torchrun (seen in torch 2.14) serves one store to the processes of
    every attempt, and addresses that an earlier attempt left there lead new ones astray. On one
    node all processes know which attempt it is, so they use a new part of the store. On several
    nodes they do not know; docs/training.md says what to set.
    """
    options: dict[str, Any] = {"backend": "gloo", "timeout": TIMEOUT}
    if device.type == "cuda":
        _check_gpus(device)
        # objects, and shards in host memory, go by way of the CPU
        options.update(backend="cpu:gloo,cuda:nccl", device_id=device)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]:
        dist.init_process_group(**options)
        return
    store, rank, world_size = next(rendezvous("env://"))
    store = PrefixStore(f"attempt-{attempt}", store)
    dist.init_process_group(**options, store=store, rank=rank, world_size=world_size)


def _check_gpus(device: torch.device) -> None:
    """Refuse processes that would share a GPU, which NCCL cannot.

    The processes of one torchrun see the same GPUs. Launchers that show each process a GPU of its
    own, as Slurm can, are not asked.
    """
    count = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if "TORCHELASTIC_RUN_ID" in os.environ and count > torch.cuda.device_count():
        raise ValueError(
            f"every process must have a GPU of its own, {count} processes found"
            f" {torch.cuda.device_count()}; start as many with --nproc_per_node, or take"
            " --device cpu"
        )


def recorded(function: Callable[[], None]) -> None:
    """Call ``function`` and write what it raises where torchrun looks for the root cause."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        record(function)()
    else:
        function()


def _print_and_leave(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    traceback.print_exception(kind, error, trace)
    processes.leave(1)


def is_group() -> bool:
    """Whether torchrun started this process."""
    return dist.is_initialized()


def rank() -> int:
    """Index of this process in its group, 0 without torchrun."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes in the group, 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def host_group(timeout: timedelta | None = None) -> Group:
    """A further group of all ranks, for tensors in host memory and for use by another thread.

    Every rank must create its groups in the same order. None without torchrun.

    Args:
        timeout: How long ranks wait for each other. [default: that of torch, 30 minutes]
    """
    if not dist.is_initialized():
        return None
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)
    return group


def barrier(group: Group = None) -> None:
    """Wait until every rank has come here."""
    if dist.is_initialized():
        dist.barrier(group)


def sum_(value: Tensor) -> Tensor:
    """Sum over ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def mean_(value: Tensor) -> Tensor:
    """Mean over ranks, in place."""
    return sum_(value).div_(world_size())


def max_(value: Tensor) -> Tensor:
    """Maximum over ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return value


def start_max_(value: Tensor, group: Group) -> Callable[[], object]:
    """Begin :func:`max_`; ``value`` is ready when the returned function has been called."""
    if group is None:
        return lambda: None
    work = dist.all_reduce(value, dist.ReduceOp.MAX, group=group, async_op=True)
    assert work is not None
    return work.wait


def gather(value: T, group: Group = None) -> list[T]:
    """The values of all ranks, in their order."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group)
    return values


def from_rank_zero(value: T, group: Group = None) -> T:
    """The value on rank 0."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, group=group)
    return box[0]


def on_rank_zero(function: Callable[[], T], group: Group = None) -> T:
    """The result of a function that rank 0 alone calls; no rank goes on if it fails.

    Args:
        function: The function. The group of all ranks waits for 30 minutes.
        group: Group in which the other ranks wait. [default: that of all ranks]

    Raises:
        ValueError, OSError: On rank 0, if the function raised it.
        RankZeroError: On the other ranks, with that message.
    """
    result: T | None = None
    error: ValueError | OSError | None = None
    if rank() == 0:
        try:
            result = function()
        except (ValueError, OSError) as caught:
            error = caught
    result, message = from_rank_zero((result, error and one_line(error)), group)
    if error is not None:
        raise error
    if message is not None:
        raise RankZeroError(message)
    return cast("T", result)
