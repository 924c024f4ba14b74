"""Metadata of configuration fields: what is checked, and what an existing run may change.

==============  ==================================================================================
``minimum``     smallest value that makes sense
``cadence``     counts images, and must be a multiple of the batch size
``may_change``  an existing run may be continued with another value: its course stays the same
==============  ==================================================================================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from edm2lite import config_file
from edm2lite.units import parse_count

Nimg = Annotated[int, BeforeValidator(parse_count)]
"""Type of a field that counts something: a whole number, also written ``10k`` or ``64Ki``."""

FREE: Mapping[str, Any] = {"may_change": True}
"""Metadata of a field that does not decide the course of a run."""


def check_fields(config: Any, batch_size: int, prefix: str = "") -> None:
    """Check the values of a dataclass against the metadata of its fields.

    Args:
        config: The dataclass.
        batch_size: Number of images per step.
        prefix: What the names in messages begin with, such as ``"hooks.0."``.

    Raises:
        ValueError: If a value is below its minimum, or a cadence is no multiple of the batch size.

    Example:
        >>> @dataclasses.dataclass
        ... class Options:
        ...     every: int = dataclasses.field(default=100, metadata={"cadence": True})
        >>> check_fields(Options(), batch_size=32)
        Traceback (most recent call last):
        ValueError: every must be a multiple of batch_size = 32, got 100; the nearest is 96
    """
    fields = dataclasses.fields(config)
    for field in fields:
        value, minimum = getattr(config, field.name), field.metadata.get("minimum")
        if None not in (minimum, value) and value < minimum:
            raise ValueError(f"{prefix}{field.name} must be at least {minimum}, got {value}")
    for field in fields:
        value = getattr(config, field.name)
        if field.metadata.get("cadence") and value is not None and value % batch_size:
            near = max(1, round(value / batch_size)) * batch_size
            raise ValueError(
                f"{prefix}{field.name} must be a multiple of batch_size = {batch_size}, got"
                f" {value}; the nearest is {near}"
            )


def changeable(config: Any) -> list[str]:
    """Dotted names of the fields whose values may change when an existing run is continued.

    Example:
        >>> from edm2lite.training import load_config
        >>> names = changeable(load_config("digits"))
        >>> "total_nimg" in names, "data.workers" in names, "optim.ref_lr" in names
        (True, True, False)
    """
    return list(_changeable(config, ""))


def differing(a: Any, b: Any) -> list[str]:
    """The fields in which two configurations describe different runs, each with both values.

    Example:
        >>> from edm2lite.training import load_config
        >>> a, b = load_config("digits"), load_config("digits", ["seed=1", "microbatch=8"])
        >>> differing(a, b)
        ['seed (0 in the run, 1 now)']
    """
    free = {*changeable(a), *changeable(b)}
    flat_a, flat_b = config_file.flatten(a), config_file.flatten(b)
    return [
        f"{key} ({flat_a.get(key)} in the run, {flat_b.get(key)} now)"
        for key in sorted(flat_a.keys() | flat_b.keys())
        if flat_a.get(key) != flat_b.get(key)
        and not any(key == name or key.startswith(f"{name}.") for name in free)
    ]


def _changeable(config: Any, prefix: str) -> Iterator[str]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata.get("may_change"):
            yield prefix + field.name
        elif dataclasses.is_dataclass(value):
            yield from _changeable(value, f"{prefix}{field.name}.")
