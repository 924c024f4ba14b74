"""Public names of a package, imported from its modules on first use.

This keeps ``import edm2lite`` free of torch, and lets a package list in one table what is public.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def exports(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` for the ``__init__`` of a package.

    Args:
        package: Name of the package: ``__name__`` in its ``__init__``.
        modules: Full name of each module -> the names that it offers, separated by spaces.

    Example:
        >>> find, _, names = exports(__name__, {"math": "cos sin", "json": "dumps"})
        >>> names, find("cos")(0.0)
        (['cos', 'dumps', 'sin'], 1.0)
    """
    home = {name: module for module, names in modules.items() for name in names.split()}

    def find(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(home[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return find, lambda: sorted([*vars(sys.modules[package]), *home]), sorted(home)
