"""Which process of how many this is, as torchrun tells it, and waiting for the first one."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")


def rank() -> int:
    """Index of this process among all that torchrun started, 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes that torchrun started, 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Index of this process among those on its machine, 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def device() -> torch.device:
    """Where this process computes: its own GPU if there are any, else the CPU."""
    import torch

    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def after_first(name: str, begin: Callable[[], T]) -> T | None:
    """What ``begin`` returns in the first process; the others go on when it has returned there.

    They do not wait where no torchrun started them: there is nobody to end them if the first one
    fails.

    Args:
        name: Name of what is begun. Once it was, nobody waits for it any more.
        begin: Function that the first process calls.

    Returns:
        The result, None in the other processes.

    Example:
        >>> after_first("a greeting", lambda: "hello")
        'hello'
    """
    store = _store() if world_size() > 1 else None
    if rank() == 0:
        result = begin()
        if store is not None:
            store.set(name, "begun")
        return result
    while store is not None and not store.check([name]):
        time.sleep(0.1)
    return None


@functools.cache
def _store() -> Store | None:
    """What torchrun keeps for the processes that it started; each of its attempts has a part."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store = next(rendezvous("env://"))[0]
    # several hosts do not count attempts alike, see training/distributed.py
    is_one_host = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if is_one_host else "0"
    return PrefixStore(f"edm2lite/{attempt}", store)
