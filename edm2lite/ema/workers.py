"""A pool of threads, the caller among them, that work through one list of tasks.

On a machine with few cores, one thread per kind of work (reading, arithmetic, writing) leaves cores
idle or makes threads compete for one core. Here everything that can be done now is in one list, and
each thread takes the next task from it.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Any, TypeVar

from edm2lite.ema.blas import libraries

T = TypeVar("T")


class WorkerPool:
    """Threads that run the tasks added to them when :meth:`run` is called; the caller helps.

    Use it as a context manager. While it is open, BLAS and torch run single-threaded in every
    worker: their own threads wait for each other after every operation, which stalls all of them
    whenever another program takes a core.

    Args:
        size: Number of workers, at least 1. [default: the cores this process may use, at most 8]

    Example:
        >>> squares = [0, 0, 0]
        >>> def square(worker, i):
        ...     squares[i] = i**2
        >>> with WorkerPool(2) as pool:
        ...     pool.add(square, range(3))
        ...     pool.run()
        >>> squares
        [0, 1, 4]
    """

    def __init__(self, size: int | None = None):
        self._size = size or min(8, num_cores())
        self._tasks: deque[tuple[Callable[[int, Any], object], Any]] = deque()

    def __len__(self) -> int:
        return self._size

    def __enter__(self) -> WorkerPool:
        self._closing = ExitStack()
        self._closing.enter_context(libraries().limit(limits=1, user_api="blas"))
        if (torch := sys.modules.get("torch")) is not None:
            self._closing.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
        self._pool = self._closing.enter_context(
            ThreadPoolExecutor(self._size, initializer=_one_torch_thread)
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    def add(self, function: Callable[[int, T], object], items: Iterable[T]) -> None:
        """Add the tasks ``function(worker, item)``, one per item, to the next run.

        Args:
            function: Called with the number of the worker, in [0, size), and an item.
            items: Second arguments of ``function``.
        """
        self._tasks.extend((function, item) for item in items)

    def run(self) -> None:
        """Carry out all tasks, started in the order in which they were added, and wait for them.

        Raises:
            Exception: Whatever a task raised; the tasks after it are dropped.
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


def _one_torch_thread() -> None:
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


def num_cores() -> int:
    """Number of cores that this process may use.

    Example:
        >>> num_cores() >= 1
        True
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
