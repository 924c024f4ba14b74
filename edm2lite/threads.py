"""A ``map`` on several threads, each of which runs torch on a single core."""

from __future__ import annotations

import collections
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

S = TypeVar("S")
T = TypeVar("T")


def map_in_threads(
    function: Callable[[S], T], items: Iterable[S], workers: int, *, ahead: int | None = None
) -> Iterator[T]:
    """The results of ``function`` on ``items``, in order, computed on ``workers`` threads.

    Each worker thread runs torch single-threaded: the rounding of a result does not depend on how
    many cores the machine has, and cores do not wait for each other within an operation. The thread
    settings of the caller stay as they are. An error comes where it would in ``map``, after the
    results before it, except that what was computed ahead of an error of ``function`` is lost.

    Args:
        function: Called with each item.
        items: Arguments of ``function``, drawn while results are consumed.
        workers: Number of threads, at least 1.
        ahead: Number of results that are computed before the first of them is taken. [default:
            twice the number of threads]

    Example:
        >>> list(map_in_threads(lambda x: x**2, range(5), workers=2))
        [0, 1, 4, 9, 16]
    """
    ahead = 2 * workers if ahead is None else ahead
    errors: list[Exception] = []
    source = _until_error(items, errors)
    pending: collections.deque[Future[T]] = collections.deque()
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for item in source:
                pending.append(pool.submit(function, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            source.close()
    if errors:
        raise errors[0]


def _until_error(items: Iterable[S], errors: list[Exception]) -> Generator[S, None, None]:
    """The items before an error, which is kept: it comes after their results, as in ``map``."""
    try:
        yield from items
    except Exception as error:
        errors.append(error)
