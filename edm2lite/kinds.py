"""Choices that stay open: a class by its ``kind``, ours by a short name, yours as ``module:Class``.

Networks, densities of noise levels, metrics and training hooks are all chosen this way. Ours are
listed as text, so that a list of names loads nothing. A module of yours is imported only where the
command line, a configuration or the caller names it, never because a file does: reading a file
finds classes of modules that are loaded already.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

T = TypeVar("T")


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
        """What ``kind`` stands for.

        Args:
            kind: A short name, or ``module:name``.
            trusted: Whether a person named it, so that its module may be imported. If a file did,
                only modules that are loaded already are searched.
            name: Name of the choice in messages, such as ``"loss.kind"``. [default: the noun]

        Raises:
            ValueError: If there is no such kind, or an untrusted one is not loaded.
        """
        known = self._known.get(kind)
        module, colon, path = (known or kind).partition(":")
        if not colon or not module or not path:
            ours = f"one of {', '.join(self)}, or " if self._known else ""
            raise ValueError(
                f"{name or self.what} must be {ours}module:name of your own, got {kind!r}"
            )
        if known is None and not trusted and module not in sys.modules:
            raise ValueError(
                f"{self.what} {kind} is not part of edm2lite, and a file cannot have it imported;"
                f" give --plugin {module}, or import {module} first"
            )
        found: Any = _import(module, self.what, kind)
        for part in path.split("."):
            found = getattr(found, part, None)
        if found is None:
            raise ValueError(f"{self.what} {kind} must exist, module {module} has no {path}")
        value: T = found
        return value


def _import(module: str, what: str, kind: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"{what} {kind} must be importable, there is no module {error.name}; add its folder to"
            " PYTHONPATH"
        ) from error
