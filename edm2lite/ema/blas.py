"""Linear algebra of small matrices on one thread.

BLAS would share products of a few hundred rows among all cores: their sums, and the last digits of
a predicted error, would depend on the machine, and its threads go on spinning for a while after it.
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
    """``function``, during which the BLAS of NumPy and SciPy has one thread."""

    @functools.wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> T:
        with _libraries().limit(limits=1, user_api="blas"):
            return function(*args, **kwargs)

    return alone


@functools.cache
def _libraries() -> ThreadpoolController:
    importlib.import_module("scipy.linalg")  # loads them all; later ones would not be found
    return ThreadpoolController()
