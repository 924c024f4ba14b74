"""Choices that stay open: a class by its ``kind``, ours by a short name, yours as ``module:Class``.

Networks, densities of noise levels, metrics and training hooks are all chosen this way. Ours are
listed as text, so that a list of names loads nothing. A module of yours is imported only where the
command line, a configuration or the caller names it, never because a file does.

Note [names in files]
    What a file names is called with values of the file, so it must not be any function that happens
    to be loaded: ``torch.hub:load`` with a folder runs the code in it. A file may choose a subclass
    of what the place is for, from a module that is loaded, and a function of a module that a person
    has named.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")

_named: set[str] = set()  # modules that a person has named


class Kinds(Generic[T]):
    """The classes, or functions, that may stand in one place.

    Args:
        what: Noun for messages, such as ``"network"``.
        known: Short name -> ``module:name`` of what it stands for.

    Example:
        >>> profiles = Kinds("clock", {"utc": "datetime:timezone"})
        >>> profiles.find("utc")
        <class 'datetime.timezone'>
        >>> profiles.find("fractions:Fraction")
        <class 'fractions.Fraction'>
    """

    def __init__(self, what: str, known: Mapping[str, str]):
        self.what, self._known = what, dict(known)

    def __iter__(self) -> Iterator[str]:
        """Short names, in the order of their definition."""
        return iter(self._known)

    def target(self, kind: str) -> str:
        """``module:name`` of what a short name stands for.

        Example:
            >>> Kinds("clock", {"utc": "datetime:timezone"}).target("utc")
            'datetime:timezone'
        """
        return self._known[kind]

    def find(self, kind: str, *, trusted: bool = True, name: str | None = None) -> T:
        """What ``kind`` stands for, where a person has named it.

        Args:
            kind: A short name, or ``module:name``.
            trusted: Whether a person named it, so that its module may be imported. If a file did,
                it must be in a module that a person has named before.
            name: Name of the choice in messages, such as ``"loss.kind"``. [default: the noun]

        Raises:
            ValueError: If there is no such kind, or an untrusted one is of an unnamed module.
        """
        return self._find(kind, trusted, name, None)

    def find_class(self, kind: str, base: type, *, trusted: bool, name: str | None = None) -> T:
        """The class that ``kind`` stands for, where a file may have named it.

        Args:
            kind: A short name, or ``module:Class``.
            base: Class that it must be derived from.
            trusted: Whether a person named it, so that its module may be imported. If a file did,
                the module must be loaded.
            name: Name of the choice in messages. [default: the noun]

        Raises:
            ValueError: If there is no such class, its module is not loaded, or it is of another
                base.

        Example:
            >>> clocks = Kinds("clock", {"utc": "datetime:timezone"})
            >>> clocks.find_class("os:system", object, trusted=False)
            Traceback (most recent call last):
            ValueError: clock os:system must be a subclass of object, and is not
        """
        found: Any = self._find(kind, trusted, name, base)
        if not isinstance(found, type) or not issubclass(found, base):
            raise ValueError(
                f"{self.what} {kind} must be a subclass of {base.__name__}, and is not"
            )
        return cast(T, found)

    def _find(self, kind: str, trusted: bool, name: str | None, base: type | None) -> T:
        known = self._known.get(kind)
        module, colon, path = (known or kind).partition(":")
        if not colon or not module or not path:
            ours = f"one of {', '.join(self)}, or " if self._known else ""
            raise ValueError(
                f"{name or self.what} must be {ours}module:name of your own, got {kind!r}"
            )
        if known is None and trusted:
            _named.add(module)
        elif known is None and (
            module not in sys.modules or (base is None and module not in _named)
        ):
            first = f"import {module}" if base else f"call edm2lite.kinds.plugin({module!r})"
            raise ValueError(
                f"{self.what} {kind} is not part of edm2lite, and a file cannot have it imported;"
                f" give --plugin {module}, or {first} first"
            )
        found: Any = _import(module, self.what, kind)
        for part in path.split("."):
            found = getattr(found, part, None)
        if found is None:
            raise ValueError(f"{self.what} {kind} must exist, module {module} has no {path}")
        value: T = found
        return value


def plugin(module: str) -> None:
    """Import a module of yours, so that files may name what is in it.

    Args:
        module: Name of the module.

    Raises:
        ModuleNotFoundError: If there is no such module.

    Example:
        >>> plugin("json")
    """
    _imported(module)
    _named.add(module)


def _imported(module: str) -> types.ModuleType:
    """A module that a person has named; it may lie in the current folder.

    Python looks there for ``python -m`` and scripts, but not for installed commands.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top, here = module.partition(".")[0], os.getcwd()
        lies_here = os.path.isfile(f"{top}.py") or os.path.isfile(os.path.join(top, "__init__.py"))
        if error.name != top or not lies_here or here in sys.path:
            raise
    sys.path.append(here)  # for the modules that it imports, and for other processes
    importlib.invalidate_caches()
    return importlib.import_module(module)


def _import(module: str, what: str, kind: str) -> Any:
    try:
        return _imported(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"{what} {kind} must be importable, there is no module {error.name}; run the"
            " command in its folder, or add the folder to PYTHONPATH"
        ) from error
