"""What commands read of a training configuration: the network and its objective.

The trainer reads configurations whole and checks every value; here the other parts are passed over.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from edm2lite.diffusion.objective import DENSITIES, Objective
from edm2lite.diffusion.precond import PrecondConfig
from edm2lite.diffusion.weighting import Weighting

T = TypeVar("T")


def shipped() -> dict[str, dict[str, Any]]:
    """The shipped configurations, by name."""
    files = sorted(resources.files("edm2lite.configs").iterdir(), key=lambda file: file.name)
    return {
        file.name.removesuffix(".yaml"): yaml.safe_load(file.read_text(encoding="utf-8"))
        for file in files
        if file.name.endswith(".yaml")
    }


def read_config(source: str) -> dict[str, Any]:
    """The configuration in a YAML file or of a run, or a shipped one.

    Raises:
        FileNotFoundError: There is none of that name.
        ValueError: It is not YAML with keys.
    """
    path = Path(source)
    path = path / "config.yaml" if path.is_dir() else path
    if not path.is_file():
        if source not in shipped():
            raise FileNotFoundError(
                f"no configuration {source}; give a YAML file, a run, or one of"
                f" {', '.join(shipped())}"
            )
        return shipped()[source]
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{source} must be YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{source} must hold keys and values, found {type(values).__name__}")
    return values


def network(values: Mapping[str, Any], source: str) -> PrecondConfig:
    """The network of a configuration.

    Raises:
        ValueError: It has none, or one that this version cannot build.
    """
    if not isinstance(values.get("net"), dict):
        raise ValueError(f"{source}: net must be given and is missing")
    return PrecondConfig.from_json(json.dumps(values["net"]))


def objective(values: Mapping[str, Any], source: str) -> Objective:
    """The objective of a configuration.

    Raises:
        ValueError: Unknown keys or values, or parts that cannot go together.
    """
    loss = dict(values.get("loss") or {})
    kind = loss.get("kind", "lognormal")
    if kind not in DENSITIES:
        raise ValueError(f"{source}: loss.kind must be one of {', '.join(DENSITIES)}, got {kind!r}")
    weighting = values.get("weighting") or {}
    try:
        return Objective(
            net=network(values, source),
            loss=_build(DENSITIES[kind], loss, "loss"),
            weighting=_build(Weighting, weighting, "weighting"),
        )
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    types = {f.name: str(f.type) for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = [key for key in values if key not in types]
    if unknown:
        raise ValueError(f"unknown key {where}.{unknown[0]}; there are {', '.join(types)}")
    return cls(**{key: _value(types[key], value, key, where) for key, value in values.items()})


def _value(kind: str, value: Any, key: str, where: str) -> Any:
    """YAML reads 1e-4 as text: the type of the field decides."""
    if not kind.startswith("float") or (value is None and "None" in kind):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{where}.{key} must be a number, got {value!r}") from None
