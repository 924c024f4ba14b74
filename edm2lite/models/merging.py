"""Models with adapters: the tensors and the metadata of both, as those of one model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from edm2lite.diffusion.precond import PrecondConfig
from edm2lite.models.adapters import Adapter
from edm2lite.models.control_names import (
    CONTROLS,
    NORMALIZATION,
    normalization_of,
    own_controls,
    with_free_names,
)
from edm2lite.network.adapters import add_deltas
from edm2lite.strict_json import parse_object
from edm2lite.text.named import text_encoder_from_json

_SOURCE = (
    "run", "nimg", "average", "sigma_rel", "gamma", "profile", "predicted_error", "solver",
    "solver_revision", "inputs", "tool", "digest", "header_digest", "adapters",
)  # fmt: skip


def merged(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    adapters: Sequence[tuple[Adapter, float]],
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a model with adapters.

    Args:
        tensors: State dict of the model.
        metadata: Metadata of the model, with its configuration under ``model``.
        adapters: Adapters and their strengths.

    Raises:
        ValueError: If an adapter does not fit the model, another adapter, or its strength.
    """
    config = PrecondConfig.from_json(metadata["model"])
    used = [(adapter, strength) for adapter, strength in adapters if strength]
    found, fields = dict(tensors), own_controls(config)
    told = normalization_of(metadata)
    for given, strength in used:
        adapter = with_free_names(given, config, fields)
        found = add_deltas(found, adapter.deltas(), strength, adapter.name)
        if taken := [key for key in adapter.backbone if key in fields and key != CONTROLS]:
            raise ValueError(
                f"adapters must add different parts, {adapter.name} has {taken[0]} as another one"
                " has; use one of them"
            )
        if (adapter.kind == "embedding" or adapter.word) and strength != 1:
            raise ValueError(
                f"a learned class or word is there or not, {adapter.name} must have strength 0 or"
                f" 1, got {strength:g}"
            )
        new = dict(adapter.backbone)
        controls = [*fields.get(CONTROLS, ()), *new.pop(CONTROLS, ())]
        fields |= {**new, CONTROLS: controls} if controls else new
        found |= {name: _scaled(name, t, strength) for name, t in adapter.own_tensors.items()}
        told |= normalization_of(adapter.metadata)
    names = ", ".join(adapter.name for adapter, _ in used)
    digests = [{"digest": adapter.digest, "strength": s} for adapter, s in used]
    described = {
        **_with_words(metadata, [adapter for adapter, _ in used]),
        "model": _with_fields(metadata["model"], fields, names),
        "adapters": json.dumps(digests, separators=(",", ":")),
    }
    return found, described | ({NORMALIZATION: json.dumps(told)} if told else {})


def _scaled(name: str, value: Tensor, strength: float) -> Tensor:
    """A tensor of the network at a strength: angles grow with it, others are as they are.

    Of a ControlNet these are the angles of its joins; its copy of the encoder may have others, by
    which that attends to text.
    """
    is_copied = f".{CONTROLS}." in name and ".joins." not in name
    return value * strength if name.endswith("angles") and not is_copied else value


def _with_words(metadata: Mapping[str, str], adapters: Sequence[Adapter]) -> dict[str, str]:
    """The metadata, with a text encoder that has learned the words of adapters."""
    described = dict(metadata)
    for adapter in adapters:
        if (word := adapter.word) is None:
            continue
        if "text_encoder" not in described:
            raise ValueError(
                f"{adapter.name} must be used with a model that is told text, its word {word[0]}"
                " belongs to a text encoder; use another model"
            )
        encoder = text_encoder_from_json(described["text_encoder"]).with_word(*word)
        described["text_encoder"] = encoder.to_json()
    return described


def _with_fields(model: str, fields: Mapping[str, Any], origin: str) -> str:
    """A model's configuration with fields of its network, checked."""
    values = parse_object(model)
    values["backbone"] = {**values["backbone"], **fields}
    return PrecondConfig.from_json(json.dumps(values), origin).to_json() if fields else model


def without_source(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata of a model without what says where its weights come from."""
    return {key: value for key, value in metadata.items() if key not in _SOURCE}
