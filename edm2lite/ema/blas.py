"""Linear algebra of small matrices on a single thread.

BLAS would split products of a few hundred rows among all cores. Their sums, and the last digits of
a predicted error, would then depend on the machine, and its threads keep spinning for a while after
the product is done.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from threadpoolctl import ThreadpoolController

P = ParamSpec("P")
T = TypeVar("T")


def on_one_thread(function: Callable[P, T]) -> Callable[P, T]:
    """A decorator: the BLAS of NumPy and SciPy has one thread while ``function`` runs.

    Example:
        >>> import numpy as np
        >>> @on_one_thread
        ... def gram(a):
        ...     return a @ a.T
        >>> gram(np.ones((2, 3)))
        array([[3., 3.],
               [3., 3.]])
    """

    @functools.wraps(function)
    def limited(*args: P.args, **kwargs: P.kwargs) -> T:
        with libraries().limit(limits=1, user_api="blas"):
            return function(*args, **kwargs)

    return limited


@functools.cache
def libraries() -> ThreadpoolController:
    """The libraries of linear algebra that NumPy and SciPy have loaded."""
    importlib.import_module("scipy.linalg")  # loads every BLAS; one loaded later would be missed
    return ThreadpoolController()
