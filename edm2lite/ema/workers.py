"""The caller and some threads that work through a list together.

On a machine of few cores a thread for each kind of work (reading, arithmetic, writing) leaves cores
idle or makes threads take turns on one. Here all that can be done now is one list, from which every
thread takes what comes next.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Crew:
    """Threads that run what was added, the caller among them.

    While the context is open torch has one thread per worker: its own threads wait for one another
    after every operation, which stalls them whenever something else takes a core.

    Args:
        size: Workers, at least 1. [default: the cores that this process may use, at most 8]
    """

    def __init__(self, size: int | None = None):
        self._size = size or min(8, num_cores())
        self._tasks: deque[tuple[Callable[[int, Any], object], Any]] = deque()

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

    def add(self, function: Callable[[int, T], object], items: Iterable[T]) -> None:
        """``function(worker, item)`` for every item, ``worker`` in [0, size), at the next run."""
        self._tasks.extend((function, item) for item in items)

    def run(self) -> None:
        """Work through all that was added, begun in its order; returns when it is done.

        Raises:
            Exception: What a worker met; the tasks after it are dropped.
        """
        helpers = min(self._size, len(self._tasks)) - 1
        others = [self._pool.submit(self._work, worker + 1) for worker in range(helpers)]
        try:
            self._work(0)
        finally:
            for other in others:
                other.exception()  # waits
        for other in others:
            other.result()

    def _work(self, worker: int) -> None:
        while True:
            try:
                function, item = self._tasks.popleft()
            except IndexError:
                return
            try:
                function(worker, item)
            except BaseException:
                self._tasks.clear()
                raise


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
