"""Several ControlNets at once: each is told an image under a name of its own."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping
from typing import Any

from edm2lite.diffusion.precond import PrecondConfig
from edm2lite.models.adapters import Adapter
from edm2lite.strict_json import parse_object

CONTROLS = "controls"
"""Field of the network's configuration that lists the images to follow."""

NORMALIZATION = "condition_normalization"
"""Key in the metadata of a model: how its condition images were normalized in training."""


def normalization_of(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Name of each condition image -> its mean and deviation, as a model file states them.

    Args:
        metadata: Metadata of the file.

    Example:
        >>> normalization_of({"condition_normalization": '{"image": {"mean": 1, "std": 2}}'})
        {'image': {'mean': 1, 'std': 2}}
    """
    return parse_object(metadata.get(NORMALIZATION, "{}"))


def own_controls(config: PrecondConfig) -> dict[str, Any]:
    """The controls that a network has, as a field of its configuration; empty if it has none.

    Args:
        config: Configuration of the denoiser.
    """
    own = getattr(config.backbone, CONTROLS, None) or ()
    return {CONTROLS: [dataclasses.asdict(control) for control in own]} if own else {}


def with_free_names(adapter: Adapter, config: PrecondConfig, fields: Mapping[str, Any]) -> Adapter:
    """The adapter, its controls under names that no other condition has: ``image``, ``image2``.

    Args:
        adapter: Any adapter; one without controls stays as it is.
        config: Configuration of the model.
        fields: Fields that other adapters have set.
    """
    taken = {condition.name for condition in config.backbone.conditions}
    taken |= {control["name"] for control in fields.get(CONTROLS, ())}
    tensors, controls = dict(adapter.tensors), list[dict[str, Any]]()
    told = normalization_of(adapter.metadata)
    for control in adapter.backbone.get(CONTROLS, ()):
        name = control["name"]
        names = itertools.chain([name], (f"{name}{i}" for i in itertools.count(2)))
        free = next(each for each in names if each not in taken)
        old, new = f".{CONTROLS}.{name}.", f".{CONTROLS}.{free}."
        tensors = {key.replace(old, new): value for key, value in tensors.items()}
        if name in told:
            told[free] = told.pop(name)
        controls.append({**control, "name": free})
        taken.add(free)
    if not controls:
        return adapter
    stated = {NORMALIZATION: json.dumps(told)} if told else {}
    return dataclasses.replace(
        adapter,
        tensors=tensors,
        backbone={**adapter.backbone, CONTROLS: controls},
        metadata={**adapter.metadata, **stated},
    )
