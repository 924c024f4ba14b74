"""The text form of a configuration: YAML, then ``--set a.b=c``, onto nested plain dataclasses.

pydantic checks and converts the values here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from edm2lite.diffusion.objective import DENSITIES
from edm2lite.models.encoders import KINDS

T = TypeVar("T")


def load(cls: type[T], source: str, overrides: Iterable[str] = ()) -> T:
    """The configuration of class ``cls`` in a file, with some values changed.

    Args:
        cls: A dataclass; its fields may be dataclasses too.
        source: A YAML file, or the name of a shipped one.
        overrides: ``a.b=c``, the value in YAML.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Unknown key, wrong type or value, with the dotted path.
    """
    values = _read_yaml(source)
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator:
            raise ValueError(f"--set takes key=value, got {text!r}; for example --set seed=1")
        _set(values, key, _value(text, value))
    _check_keys(values, cls, ())
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint) and name not in values and _is_required(cls, name):
            values[name] = {}  # so that the error names what is missing in it
    try:
        return TypeAdapter(cls).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in (*KINDS, *DENSITIES))
        if first["type"] == "value_error":
            raise ValueError(
                f"{source}: {where + ': ' if where else ''}{first['ctx']['error']}"
            ) from None
        if first["type"] == "missing":
            raise ValueError(
                f"{source}: {where} must be given and is missing; --set {where}=VALUE does it"
            ) from None
        wanted = first["msg"][0].lower() + first["msg"][1:]
        raise ValueError(f"{source}: {where}: {wanted}, got {first['input']!r}") from None


def _is_required(cls: Any, name: str) -> bool:
    field = cls.__dataclass_fields__[name]
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def dump(config: Any) -> str:
    """Text form of a dataclass, complete; :func:`load` of it gives an equal object."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)


def flatten(config: Any) -> Mapping[str, Any]:
    """Dotted name -> value of every field of a dataclass."""
    return _flatten(_plain(dataclasses.asdict(config)))


def shipped() -> list[str]:
    """Names of the shipped configurations."""
    folder = resources.files("edm2lite.configs")
    return sorted(
        p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml")
    )


def _value(text: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"--set {text}: the value must be YAML: {reason}") from error


def _read_yaml(source: str) -> dict[str, Any]:
    path: Any = Path(source)
    if not path.is_file():
        path = resources.files("edm2lite.configs") / f"{source}.yaml"
        if not path.is_file():
            raise FileNotFoundError(
                f"no configuration {source}; give a YAML file or one of {', '.join(shipped())}"
            )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{source} must be YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{source} must hold keys and values, found {type(values).__name__}")
    return values


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ValueError(f"--set {key}: {parent} is a single value and has no keys below it")
    values[last] = value


def _check_keys(values: Mapping[str, Any], cls: Any, path: tuple[str, ...]) -> None:
    """Unknown keys are an error that names the nearest known one."""
    hints = typing.get_type_hints(cls)
    for key, value in values.items():
        dotted = ".".join((*path, str(key)))
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.0)
            raise ValueError(
                f"unknown key {dotted}; the nearest known one is {'.'.join((*path, *near))}"
            )
        choices = [c for c in (typing.get_args(hints[key]) or [hints[key]]) if _is_config(c)]
        if choices:
            if not isinstance(value, Mapping):
                raise ValueError(f"{dotted} must hold keys and values, got {value!r}")
            _check_keys(value, _chosen(choices, value, dotted), (*path, key))


def _is_config(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _chosen(choices: list[Any], value: Mapping[str, Any], dotted: str) -> Any:
    """The class that a value describes by its ``kind``: the first if it names none."""
    if len(choices) == 1:
        return choices[0]
    kinds = {c.__dataclass_fields__["kind"].default: c for c in choices}
    kind = value.get("kind", next(iter(kinds)))
    if kind not in kinds:
        raise ValueError(f"{dotted}.kind must be one of {', '.join(kinds)}, got {kind!r}")
    return kinds[kind]


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
