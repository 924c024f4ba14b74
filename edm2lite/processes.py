"""Which process of how many this is, as torchrun tells it, and waiting for the first one."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, TypeVar

if TYPE_CHECKING:
    import torch
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")


logger = logging.getLogger(__name__)

POLL = 5.0
"""Seconds between two looks at whether torchrun lives."""

GRACE = 40.0
"""Seconds that a process has to stop by itself when torchrun is dead."""

_watching = threading.Lock()
_chosen_device: str | None = None


def watch_launcher() -> None:
    """See that this process stops soon if the torchrun that started it is killed.

    A torchrun that gets SIGKILL leaves its processes to themselves: they would go on to the end,
    unseen, beside those of the next torchrun. Within :data:`POLL` seconds such a process gets
    SIGTERM, at which training ends with a checkpoint, and :data:`GRACE` seconds later it ends
    whatever it waits for. Nothing happens in a process that torchrun did not start.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and _watching.acquire(blocking=False):
        threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(POLL)
    if rank() == 0:
        logger.warning("torchrun has died; its processes stop, as at SIGTERM")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within the block Ctrl-C ends in KeyboardInterrupt, whatever was made of it on the way.

    Compiled modules that are being imported and readers of checkpoints turn a KeyboardInterrupt
    into an error of their own. A process that handles SIGINT otherwise keeps doing so.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    interrupts = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except Exception as error:
        if interrupts:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def leave(code: int) -> NoReturn:
    """End this process now, without waiting for threads that may wait for other ranks."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def rank() -> int:
    """Index of this process among all that torchrun started, 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes that torchrun started, 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Index of this process among those on its machine, 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def choose_device(name: str | None) -> None:
    """Let :func:`device` take another device than the default.

    Args:
        name: ``cpu``, ``cuda`` (the GPU of this process) or, for a single process, ``cuda:N``; None
            for the default.

    Raises:
        ValueError: If it is none of these, or processes would share a GPU. Whether there is such a
            device is not asked yet.
    """
    if name is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"a device must be cpu, cuda or cuda:N, got {name!r}")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if name is not None and ":" in name and local > 1:
        raise ValueError(
            f"--device {name} must be for a single process, there are {local}; take --device cuda,"
            " which gives each a GPU of its own"
        )
    global _chosen_device
    _chosen_device = name


def device() -> torch.device:
    """Where this process computes: its own GPU if there are any, else the CPU.

    Processes of one machine take its GPUs in turn. The GPU becomes the current one of torch.

    Raises:
        ValueError: If the device that :func:`choose_device` names does not exist.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    name = _chosen_device or ("cuda" if count else "cpu")
    kind, _, number = name.partition(":")
    if kind == "cpu":
        return torch.device("cpu")
    index = int(number) if number else local_rank() % max(count, 1)
    if index >= count:
        raise ValueError(
            f"device {name} must exist, found {count} CUDA devices; take --device cpu, or look at"
            " the driver and CUDA_VISIBLE_DEVICES"
        )
    place = torch.device("cuda", index)
    torch.cuda.set_device(place)
    return place


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
