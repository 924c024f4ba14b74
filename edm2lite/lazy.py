"""Names that a package offers from its modules, imported on first use.

So ``import edm2lite`` loads neither torch nor anything else, and a package can say in one table
what is public in it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def exports(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package.

    Args:
        package: Name of the package, ``__name__`` in its ``__init__``.
        modules: Full name of a module -> the names it offers, separated by spaces.
    """
    home = {name: module for module, names in modules.items() for name in names.split()}

    def find(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(home[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return find, lambda: sorted([*vars(sys.modules[package]), *home]), sorted(home)
