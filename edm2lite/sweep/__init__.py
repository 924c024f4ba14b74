"""EMA length (with guidance, guide, training time, groups of tensors) against any metric.

The package is callable: ``edm2lite.sweep(run, ...)`` is :func:`sweep_ema`.

Example:
    >>> import edm2lite
    >>> edm2lite.sweep("runs/digits", [0.10], "loss")
    Traceback (most recent call last):
    TypeError: sweep_ema() takes from 1 to 2 positional arguments but 3 were given
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edm2lite.lazy import exports

if TYPE_CHECKING:
    from edm2lite.sweep.cells import Cell as Cell
    from edm2lite.sweep.cells import Point as Point
    from edm2lite.sweep.cells import best as best
    from edm2lite.sweep.cells import best_average as best_average
    from edm2lite.sweep.cells import read_csv as read_csv
    from edm2lite.sweep.cells import write_csv as write_csv
    from edm2lite.sweep.driver import Sweep as Sweep
    from edm2lite.sweep.driver import run_sweep as run_sweep
    from edm2lite.sweep.driver import sweep_ema as sweep_ema
    from edm2lite.sweep.options import SweepOptions as SweepOptions


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        """Measure a run at several EMA lengths; see :func:`sweep_ema`."""
        return self.sweep_ema(*args, **options)


sys.modules[__name__].__class__ = _CallablePackage
sweep = sys.modules[__name__]
"""The package itself, for the names of ``edm2lite``."""

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "edm2lite.sweep.cells": "Cell Point best best_average read_csv write_csv",
        "edm2lite.sweep.driver": "Sweep run_sweep sweep_ema",
        "edm2lite.sweep.options": "SweepOptions",
    },
)
