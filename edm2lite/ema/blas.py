"""Linear algebra of small matrices on one thread.

BLAS would share products of a few hundred rows among all cores: their sums, and the last digits of
a predicted error, would depend on the machine, and its threads go on spinning for a while after it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numpy  # noqa: F401  (the libraries must be there when the controller looks for them)
import scipy.linalg  # noqa: F401
from threadpoolctl import ThreadpoolController

P = ParamSpec("P")
T = TypeVar("T")

_controller = functools.cache(ThreadpoolController)


def on_one_thread(function: Callable[P, T]) -> Callable[P, T]:
    """``function``, during which the BLAS of NumPy and SciPy has one thread."""

    @functools.wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> T:
        with _controller().limit(limits=1, user_api="blas"):
            return function(*args, **kwargs)

    return alone
