"""JSON of unknown files: parsed strictly, and checked against the fields of a dataclass.

The parser of the standard library takes ``NaN``, keeps the last of two equal names, returns numbers
that no array can hold, and ends in a RecursionError on a text of a thousand brackets. Here all of
these are a ValueError.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")
_LIMIT = 2**63


def parse(text: str | bytes, *, finite: bool = True) -> Any:
    """The value of a JSON text.

    Args:
        text: The text, in UTF-8 if it is bytes.
        finite: Whether NaN and infinity are refused, which JSON does not have.

    Raises:
        ValueError: If it is not JSON, is nested too deeply, gives a name twice, or has a number
            that 64 bits cannot hold. The message continues a sentence: "must be JSON, but ...".

    Example:
        >>> parse('{"labels": [["a.png", 3]]}')
        {'labels': [['a.png', 3]]}
        >>> parse("[" * 100_000)
        Traceback (most recent call last):
        ValueError: brackets are nested too deeply
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_distinct,
            parse_int=_integer,
            parse_float=_finite if finite else float,
            parse_constant=_finite if finite else float,
        )
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None


def parse_object(text: str | bytes, *, finite: bool = True) -> dict[str, Any]:
    """The names and values of a JSON object; see :func:`parse`.

    Args:
        text: The text.
        finite: Whether NaN and infinity are refused.

    Raises:
        ValueError: As :func:`parse`, or if it is a list or a single value.

    Example:
        >>> parse_object('{"seed": 1}')
        {'seed': 1}
    """
    value = parse(text, finite=finite)
    if not isinstance(value, dict):
        raise ValueError(f"it is {shown(value)}")
    return value


def parse_at(text: str, begin: int) -> tuple[Any, int]:
    """The JSON value that begins at a position of a text, and the position where it ends.

    Args:
        text: The text; what follows the value is not looked at.
        begin: Position of the first character.

    Raises:
        ValueError: As :func:`parse`.

    Example:
        >>> parse_at('{"a":[1],"b":2}', 5)
        ([1], 8)
    """
    decoder = json.JSONDecoder(
        object_pairs_hook=_distinct, parse_int=_integer, parse_float=_finite, parse_constant=_finite
    )
    try:
        return decoder.raw_decode(text, begin)
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None


def check_fields(cls: type, values: Mapping[str, Any]) -> None:
    """Refuse values that are of another type than the fields of a dataclass.

    Numbers must be finite, and a whole number is a real number too. Lists may stand for tuples.
    Fields of other types than numbers, texts, truth values, choices and lists of these are passed
    over: their class has to check them.

    Args:
        cls: The dataclass.
        values: Values by the names of fields.

    Raises:
        ValueError: If a field is unknown, or a value is of another type.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Size:
        ...     width: int
        >>> check_fields(Size, {"width": "12"})
        Traceback (most recent call last):
        ValueError: width must be int, found '12'
    """
    hints = typing.get_type_hints(cls)
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"{shown(name)} is not a setting of {cls.__name__}")
        if not _is_of(value, hints[name]):
            hint = hints[name]
            expected = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
            raise ValueError(f"{name} must be {expected}, found {shown(value)}")


def from_fields(cls: type[T], values: Mapping[str, Any]) -> T:
    """The dataclass with given fields, its parts that are dataclasses included.

    Args:
        cls: The dataclass; a field may hold another dataclass, or None.
        values: Values by the names of fields, as JSON has them: lists stand for tuples.

    Raises:
        ValueError: As :func:`check_fields`.
        TypeError: If a field is missing.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Size:
        ...     width: int
        >>> from_fields(Size, {"width": 12})
        Size(width=12)
    """
    check_fields(cls, values)
    hints, fields = typing.get_type_hints(cls), dict(values)
    for name, value in values.items():
        parts = _dataclasses(hints[name])

        def part(value: Any, parts: list[Any] = parts) -> Any:
            return from_fields(parts[0], value) if parts and isinstance(value, Mapping) else value

        is_list = isinstance(value, list | tuple)
        fields[name] = tuple(map(part, value)) if is_list else part(value)
    return cls(**fields)


def _dataclasses(hint: Any) -> list[Any]:
    """The dataclasses that a field may hold, alone or in a tuple."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [hint]
    return [found for choice in typing.get_args(hint) for found in _dataclasses(choice)]


def shown(value: object) -> str:
    """A value in the form used in messages: on one line, short, containers by their type.

    Example:
        >>> shown("a" * 100)[-8:], shown([1, 2])
        ('aaaaa...', 'a list')
    """
    if isinstance(value, dict | list | tuple):
        return "names and values" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _is_of(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return any(_is_of(value, choice) for choice in arguments)
    if origin is tuple and arguments[1:] == (...,):
        return isinstance(value, list | tuple) and all(_is_of(v, arguments[0]) for v in value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return isinstance(value, Mapping | hint)
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    if hint in (int, str, bool, type(None)):
        return type(value) is hint
    return True


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in it")
    return found


def _integer(text: str) -> int:
    if len(text) > 20 or not -_LIMIT <= (value := int(text)) < _LIMIT:
        raise ValueError(f"{text[:20]}... is a number of more than 64 bits")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value
