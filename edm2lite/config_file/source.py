"""Where a configuration comes from: a YAML file, a run or a shipped one, and what it builds upon.

A file may begin with ``base: NAME``, the name of another one. What it does not say is then as in
the other one: keys are joined at every depth, lists and single values replace those of the base,
and a part that names its ``kind`` replaces the whole part.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from edm2lite.config_file import strict_yaml
from edm2lite.messages import one_line


def shipped() -> list[str]:
    """Names of the shipped configurations."""
    folder = resources.files("edm2lite.configs")
    return sorted(
        p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml")
    )


def read_yaml(source: str, builds_on: tuple[str, ...] = ()) -> dict[str, Any]:
    """The keys and values of a YAML file, those of its base included.

    Args:
        source: A YAML file, the folder of a run, or the name of a shipped configuration.
        builds_on: The files that lead to this one as their base, the first one first.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not YAML of keys and values, or builds upon itself.
    """
    if source in builds_on:
        raise ValueError(f"base must lead to an end, got {' -> '.join((*builds_on, source))}")
    path: Any = Path(source)
    path = path / "config.yaml" if path.is_dir() else path
    if not path.is_file():
        path = resources.files("edm2lite.configs") / f"{source}.yaml"
        if not path.is_file():
            raise FileNotFoundError(_missing(source))
    try:
        values = strict_yaml.parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{source} must be a YAML file, and is no text") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{source} must be YAML: {_reason(error)}") from error
    if not isinstance(values, dict):
        found = {"list": "a list", "str": "text", "NoneType": "nothing"}
        name = type(values).__name__
        raise ValueError(
            f"{source} must hold keys and values, found {found.get(name, name)}; `edm2lite config"
            " digits --template` prints an example"
        )
    base = values.pop("base", None)
    if base is None:
        return values
    return _joined(read_yaml(str(base), (*builds_on, source)), values)


def _missing(source: str) -> str:
    """That there is no such configuration, and what may be meant."""
    if Path(source).is_dir():
        return (
            f"{source} must be a YAML file, a run or a name, and is a folder without config.yaml;"
            f" if it holds pictures: edm2lite train --data {source}"
        )
    near = difflib.get_close_matches(source, shipped(), n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"there is no configuration {source}; {meant}edm2lite config lists those shipped"


def _reason(error: yaml.YAMLError) -> str:
    """What is wrong in a text that is not YAML, and in which line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return one_line(error)
    return f"line {mark.line + 1}: {one_line(problem)}"


def _joined(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of ``base``, with those of ``values`` in their place."""
    result = dict(base)
    for key, value in values.items():
        below = result.get(key)
        if isinstance(below, dict) and isinstance(value, dict) and "kind" not in value:
            result[key] = _joined(below, value)
        else:
            result[key] = value
    return result
