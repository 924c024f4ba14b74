"""A ``map`` on several threads, each of which runs torch on a single core."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

S = TypeVar("S")
T = TypeVar("T")


def map_in_threads(function: Callable[[S], T], items: Iterable[S], workers: int) -> Iterator[T]:
    """The results of ``function`` on ``items``, in order, computed on ``workers`` threads.

    Each worker thread runs torch single-threaded: the rounding of a result does not depend on how
    many cores the machine has, and cores do not wait for each other within an operation. The thread
    settings of the caller stay as they are. A few results are computed ahead.

    Args:
        function: Called with each item.
        items: Arguments of ``function``, drawn while results are consumed.
        workers: Number of threads, at least 1.

    Example:
        >>> list(map_in_threads(lambda x: x**2, range(5), workers=2))
        [0, 1, 4, 9, 16]
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
