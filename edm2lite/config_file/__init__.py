"""The text form of a configuration: YAML, then ``--set a.b=c``, onto nested plain dataclasses.

pydantic checks and converts the values, here and nowhere else. Where a field is an open choice (its
class has ``kinds``, a :class:`edm2lite.kinds.Kinds`), the ``kind`` in the text decides which class.
A field may hold a part (a dataclass), an optional part (``X | None``: ``true`` stands for its
defaults, ``false`` for none) or a list of parts (``tuple[X, ...]``).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from edm2lite.config_file import strict_yaml
from edm2lite.config_file.source import read_yaml
from edm2lite.config_file.source import shipped as shipped
from edm2lite.messages import one_line

T = TypeVar("T")


def load(
    cls: type[T],
    source: str,
    overrides: Iterable[str] = (),
    *,
    upgrade: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    complete: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    partial: bool = False,
) -> T:
    """The configuration of class ``cls`` in a file, with some values changed.

    Args:
        cls: A dataclass; its fields may be dataclasses too.
        source: A YAML file, the folder of a run, or the name of a shipped configuration.
        overrides: Changes ``a.b=c``, each value in YAML.
        upgrade: Function from what an older version wrote to what this one reads.
        complete: Function that adds values which follow from the others, with the changes made.
        partial: Whether further top-level keys are passed over, because ``cls`` describes only a
            part of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a key is not known, or a value has the wrong type or is out of range; the
            message has the dotted path.
    """
    values = upgrade(read_yaml(source))
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator:
            raise ValueError(f"--set takes key=value, got {text!r}; for example --set seed=1")
        _set(values, key, _value(text, value))
    values = complete(values)
    if partial:
        known = typing.get_type_hints(cls)
        values = {key: value for key, value in values.items() if key in known}
    values = _with_shorthands(values, cls)
    _check_keys(values, cls, ())
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint) and name not in values and _is_required(cls, name):
            values[name] = {}  # so that the error names what is missing in it
    config = _built(cls, _chosen_built(values, cls, (), source), (), source)
    for name, value in flatten(config).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{source}: {name} must be finite, got {number}")
    return config


def _built(cls: type[T], values: Mapping[str, Any], path: tuple[str, ...], source: str) -> T:
    """A dataclass of values that pydantic has checked and converted."""
    try:
        return TypeAdapter(cls).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join((*path, *map(str, first["loc"])))
        if first["type"] == "value_error":
            raise ValueError(
                f"{source}: {where + ': ' if where else ''}{first['ctx']['error']}"
            ) from None
        if first["type"] == "missing":
            raise ValueError(
                f"{source}: {where} must be given and is missing; --set {where}=VALUE does it"
            ) from None
        raise ValueError(
            f"{source}: {where} must be {_expected(first)}, got {_shown(first['input'])}"
        ) from None


def _expected(error: Any) -> str:
    """What a value must be, where pydantic found another one."""
    if error["type"] == "literal_error":
        return str(error["ctx"]["expected"])
    expected = {
        "int": "a whole number, as in 50000, 10k or 64Ki",
        "float": "a number",
        "bool": "true or false",
        "string": "text",
        "tuple": "a list, as in [0.05, 0.1]",
        "dict": "keys and values",
        "mapping": "keys and values",
    }
    kind, told = error["type"].partition("_")[0], str(error["msg"])
    return expected.get(kind, told.removeprefix("Input should be "))


def _shown(value: Any) -> str:
    return "null" if value is None else one_line(repr(value), 200)


def _chosen_built(
    values: Mapping[str, Any], cls: Any, path: tuple[str, ...], source: str
) -> dict[str, Any]:
    """The values, with those of open choices replaced by objects of the class that they chose."""
    built: dict[str, Any] = {}
    for key, value in values.items():
        hint, is_list = _part(typing.get_type_hints(cls)[key])
        where = (*path, key)
        if is_list:
            built[key] = tuple(
                _part_built(item, hint, (*where, str(i)), source) for i, item in enumerate(value)
            )
        elif hint is not None and isinstance(value, Mapping):
            built[key] = _part_built(value, hint, where, source)
        else:
            built[key] = value
    return built


def _part_built(value: Mapping[str, Any], hint: Any, path: tuple[str, ...], source: str) -> Any:
    chosen = _class_of(hint, value, ".".join(path))
    values = _chosen_built(value, chosen, path, source)
    return values if chosen is hint else _built(chosen, values, path, source)


def _is_required(cls: Any, name: str) -> bool:
    field = cls.__dataclass_fields__[name]
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def dump(config: Any) -> str:
    """Text form of a dataclass, complete; :func:`load` of it gives an equal object."""
    return yaml.dump(_plain(dataclasses.asdict(config)), Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Writes long lists of numbers, as statistics of channels are, side by side."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> Any:
        is_long = len(sequence) > 8 and all(isinstance(value, float) for value in sequence)
        return super().represent_sequence(tag, sequence, flow_style=is_long or flow_style)


def flatten(config: Any) -> Mapping[str, Any]:
    """Dotted name -> value of every field of a dataclass."""
    return _flatten(_plain(dataclasses.asdict(config)))


def _value(text: str, value: str) -> Any:
    try:
        return strict_yaml.parse(value)
    except yaml.YAMLError as error:
        reason = one_line(error)
        raise ValueError(f"--set {text}: the value must be YAML: {reason}") from error


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    inner: Any = values
    for done, parent in enumerate(parents, 1):
        if isinstance(inner, list):
            inner = inner[int(parent)] if parent in map(str, range(len(inner))) else None
        else:
            inner[parent] = {} if inner.get(parent) is None else inner[parent]
            inner = inner[parent]
        if not isinstance(inner, dict | list):
            what = ".".join(parents[:done])
            raise ValueError(f"--set {key}: {what} is a single value and has no keys below it")
    if isinstance(inner, list):
        raise ValueError(f"--set {key}: {'.'.join(parents)} is a list; set it as a whole")
    inner[last] = value


def _check_keys(values: Mapping[str, Any], cls: Any, path: tuple[str, ...]) -> None:
    """Unknown keys are an error that names the nearest known one."""
    hints = typing.get_type_hints(cls)
    for key, value in values.items():
        dotted = ".".join((*path, str(key)))
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.0)
            meant = _elsewhere(str(key), cls, path) or ".".join((*path, *near))
            raise ValueError(f"unknown key {dotted}; the nearest known one is {meant}")
        if isinstance(value, bool) and hints[key] in (int, float):
            raise ValueError(f"{dotted} must be a number, got {str(value).lower()}")
        hint, is_list = _part(hints[key])
        if is_list:
            _check_list(value, hint, dotted, (*path, key))
        elif hint is not None and not (value is None and hint is not hints[key]):
            _check_part(value, hint, dotted, (*path, key))


def _elsewhere(key: str, cls: Any, path: tuple[str, ...]) -> str | None:
    """A key below, in a part, that is called so or ends so: ``optim.ref_lr`` for ``lr``."""
    hints = typing.get_type_hints(cls)
    for name in hints:
        if name == key or (path and name.endswith(f"_{key}")):
            return ".".join((*path, name))
    for name, hint in hints.items():
        part, is_list = _part(hint)
        below = part is not None and not is_list and "kinds" not in vars(part)
        if below and (found := _elsewhere(key, part, (*path, name))) is not None:
            return found
    return None


def _check_part(value: Any, hint: Any, dotted: str, path: tuple[str, ...]) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{dotted} must hold keys and values, got {_shown(value)}")
    _check_keys(value, _class_of(hint, value, dotted), path)


def _check_list(value: Any, hint: Any, dotted: str, path: tuple[str, ...]) -> None:
    if not isinstance(value, list | tuple):
        raise ValueError(
            f"{dotted} must be a list, each item with keys and values, got {_shown(value)}"
        )
    for i, item in enumerate(value):
        if isinstance(item, Mapping) and "kinds" in vars(hint) and "kind" not in item:
            raise ValueError(
                f"{dotted}.{i}.kind must be given, got {dict(item)!r}; it is one of"
                f" {', '.join(hint.kinds)}, or module:name of your own"
            )
        _check_part(item, hint, f"{dotted}.{i}", (*path, str(i)))


def _with_shorthands(values: Mapping[str, Any], cls: Any) -> dict[str, Any]:
    """The values, with ``true`` and ``false`` for an optional part written out."""
    hints = typing.get_type_hints(cls)
    written_out: dict[bool, Any] = {True: {}, False: None}
    return {
        key: written_out[value]
        if isinstance(value, bool) and key in hints and _is_optional_part(hints[key])
        else value
        for key, value in values.items()
    }


def _is_config(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _is_optional_part(hint: Any) -> bool:
    return not _is_config(hint) and _part(hint)[0] is not None and not _part(hint)[1]


def _part(hint: Any) -> tuple[Any, bool]:
    """The dataclass that a field holds, None for plain values; whether it holds a list of them."""
    if _is_config(hint):
        return hint, False
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and arguments[1:] == (...,):
        return (arguments[0], True) if _is_config(arguments[0]) else (None, False)
    if type(None) in arguments:
        parts = [a for a in arguments if _is_config(a)]
        return (parts[0] if len(parts) == 1 else None), False
    return None, False


def _class_of(hint: Any, value: Mapping[str, Any], dotted: str) -> Any:
    """The class that a value describes by its ``kind``, the first there is if it names none."""
    kinds = vars(hint).get("kinds")  # of an open choice; a class that was chosen inherits it
    if kinds is None:
        return hint
    return kinds.find(str(value.get("kind", next(iter(kinds)))), name=f"{dotted}.kind")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _flatten(values: Mapping[str, Any], prefix: str = "") -> types.MappingProxyType[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return types.MappingProxyType(flat)
