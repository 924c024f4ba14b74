"""Work on several threads of which each gives torch a single one."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
