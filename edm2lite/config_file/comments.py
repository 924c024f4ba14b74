"""What the keys of a configuration mean: the sentences of its classes, as comments and as tables.

The sentence of a key is what the docstring of its class says of it under ``Attributes``.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from edm2lite.config_file import _Dumper, _part, _plain
from edm2lite.units import format_count

_WIDTH = 96
MAY_CHANGE = "May change in a run."
"""What a key is marked with whose value may be another one when a run is continued."""


@dataclass(frozen=True)
class Key:
    """A key of a configuration.

    Attributes:
        name: Name of the key.
        sentence: What it means.
        type: What its value is.
        default: Value that it has where it is not given; None if it must be given.
        may_change: Whether an existing run may be continued with another value.
        part: Class whose fields are the keys below it, or None.
    """

    name: str
    sentence: str
    type: str
    default: str | None
    may_change: bool
    part: Any


def keys(cls: Any) -> list[Key]:
    """The keys of a dataclass, in the order of its fields.

    Args:
        cls: The dataclass.

    Example:
        >>> from edm2lite.training.config import EMAConfig
        >>> for key in keys(EMAConfig):
        ...     print(f"{key.name} ({key.type}; {key.default}): {key.sentence}")
        sigma_rels (list of numbers; [0.05, 0.1]): EMA lengths of the averages, each in (0, 0.2886).
        dtype (float32, float16 or bfloat16; float32): Floating-point type of the snapshot files.
    """
    sentences = _sentences(cls)
    hints = typing.get_type_hints(cls, include_extras=True)
    plain = typing.get_type_hints(cls)
    return [
        Key(
            field.name,
            (field.name == "kind" and _of_kind(cls)) or sentences.get(field.name, ""),
            _described(hints[field.name]),
            _default(field, hints[field.name]),
            bool(field.metadata.get("may_change")),
            _part(plain[field.name])[0],
        )
        for field in dataclasses.fields(cls)
    ]


def choices(part: Any) -> dict[str, Any]:
    """Kind -> class of what may stand in one place; a part that is no choice has the kind ``""``.

    Args:
        part: Class of :attr:`Key.part`.

    Example:
        >>> from edm2lite.models.encoders import Encoder
        >>> list(choices(Encoder))
        ['pixels', 'latents', 'patches']
    """
    kinds = vars(part).get("kinds")
    return {"": part} if kinds is None else {kind: kinds.find(kind) for kind in kinds}


def commented(config: Any, title: str = "") -> str:
    """The complete text form of a dataclass, with a comment above each key.

    Args:
        config: The dataclass; :func:`edm2lite.config_file.load` of the text gives an equal one.
        title: Lines to begin with, as a comment.

    Example:
        >>> from edm2lite.training.config import EMAConfig
        >>> print(commented(EMAConfig()), end="")
        # EMA lengths of the averages, each in (0, 0.2886).
        sigma_rels:
        - 0.05
        - 0.1
        # Floating-point type of the snapshot files.
        dtype: float32
    """
    head = [f"# {line}".rstrip() for line in title.splitlines()]
    head += [""] if head else []
    return "\n".join([*head, *_lines(config, may_change=False)]) + "\n"


def _lines(config: Any, may_change: bool) -> Iterator[str]:
    for key in keys(type(config)):
        value = getattr(config, key.name)
        is_free = key.may_change or may_change
        mark = f" {MAY_CHANGE}" if is_free and not may_change else ""
        for line in textwrap.wrap(key.sentence + mark, _WIDTH):
            yield f"# {line}"
        if dataclasses.is_dataclass(value):
            yield f"{key.name}:"
            yield from _indented(_lines(value, is_free))
        elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
            yield f"{key.name}:"
            for item in value:
                yield "-"
                yield from _indented(_lines(item, is_free))
        else:
            text = yaml.dump({key.name: _plain(value)}, Dumper=_Dumper, sort_keys=False)
            yield from text.splitlines()


def _indented(lines: Iterator[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)


def _sentences(cls: Any) -> dict[str, str]:
    """What the docstrings of a class and its bases say of their fields."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        text = inspect.cleandoc(vars(base).get("__doc__") or "")
        section = re.search(r"^Attributes:\n((?:    .*\n?|\n)+)", text, re.M)
        for name, sentence in re.findall(
            r"^    (\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.M
        ):
            found[name] = _readable(sentence)
    return found


def _readable(text: str) -> str:
    """Markup of docstrings as people read it in plain text."""
    text = " ".join(text.split()).replace("``", "`")
    text = re.sub(r",? \(?(?:see )?:mod:`[^`]+`\)?", "", text)  # places in the source
    text = re.sub(r":\w+:`~?\.?([^`]+)`", r"\1", text)
    return re.sub(r"\bNone\b", "null", text)


def _of_kind(cls: Any) -> str:
    kinds = next((vars(base)["kinds"] for base in cls.__mro__ if "kinds" in vars(base)), None)
    if kinds is None:
        return ""
    names = [*kinds, "module:Class of your own"]
    return f"Which {kinds.what}: {', '.join(names[:-1])} or {names[-1]}."


def _default(field: dataclasses.Field[Any], hint: Any) -> str | None:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return None
    if _described(hint) == "count" and isinstance(value, int):
        return format_count(value)
    if dataclasses.is_dataclass(value):
        kind = getattr(value, "kind", None)
        return f"kind: {kind}" if kind else "its defaults"
    text = yaml.dump(_plain(value), Dumper=_Dumper, default_flow_style=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")


def _described(hint: Any) -> str:
    """A type in words."""
    names = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    if hint in names:
        return names[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return "count" if arguments[0] is int else _described(arguments[0])
    if origin is typing.Literal:
        return _listed([str(argument) for argument in arguments])
    if origin is tuple:
        return f"list of {_plural(_described(arguments[0]))}"
    if origin in (dict, Mapping):
        return f"keys with a {_described(arguments[1])} each"
    if origin in (typing.Union, types.UnionType):
        return _listed(["null" if a is type(None) else _described(a) for a in arguments])
    return "keys below" if dataclasses.is_dataclass(hint) else "value"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _plural(name: str) -> str:
    return {"text": "texts", "keys below": "parts"}.get(name, f"{name}s")
