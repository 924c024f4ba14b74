"""The caller and some threads that work through lists together."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import torch

S = TypeVar("S")


class Crew:
    """The caller and some threads, which work through one list after another together.

    While the context is open torch has one thread per worker: its own threads wait for one another
    after every operation, which stalls them whenever something else takes a core.

    Args:
        size: Workers, the caller among them, at least 1.
    """

    def __init__(self, size: int):
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __enter__(self) -> Crew:
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self._pool = ThreadPoolExecutor(
            self._size, initializer=torch.set_num_threads, initargs=(1,)
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        torch.set_num_threads(self._threads)

    def run(self, function: Callable[[int, S], object], items: Sequence[S]) -> None:
        """``function(worker, item)`` for every item, ``worker`` in [0, size); returns when all ran.

        Raises:
            Exception: The first that a worker met; the items after it may not have run.
        """
        if self._size == 1:
            for item in items:
                function(0, item)
            return
        left = deque(items)

        def work(worker: int) -> None:
            while True:
                try:
                    item = left.popleft()
                except IndexError:
                    return
                function(worker, item)

        helpers = min(self._size, len(items)) - 1
        others = [self._pool.submit(work, worker + 1) for worker in range(helpers)]
        try:
            work(0)
        finally:
            for other in others:
                other.exception()  # waits
        for other in others:
            other.result()


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
