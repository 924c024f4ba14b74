"""Work on several threads of which each gives torch a single one."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import torch

S = TypeVar("S")
T = TypeVar("T")


def map_in_threads(function: Callable[[S], T], items: Iterable[S], workers: int) -> Iterator[T]:
    """``map`` on ``workers`` threads: results in order, a few computed ahead.

    Rounding of a result then does not depend on how many cores there are, and cores do not wait for
    each other within an operation. The thread settings of the caller stay as they are.
    """
    pending: collections.deque[Future[T]] = collections.deque()
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


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
        left = collections.deque(items)

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
