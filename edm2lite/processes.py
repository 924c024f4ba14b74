"""Which process of how many this is, as torchrun tells it by environment variables."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


logger = logging.getLogger(__name__)

POLL = 5.0
"""Seconds between two looks at whether torchrun lives."""

GRACE = 40.0
"""Seconds that a process has to stop by itself when torchrun is dead."""

_watching = threading.Lock()


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
