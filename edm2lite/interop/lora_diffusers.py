"""The LoRA files of diffusers: keys of peft or older ones, below the part of the pipeline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from edm2lite.interop.lora_names import LayerNames
from edm2lite.interop.lora_peft import SUFFIXES as PEFT
from edm2lite.interop.lora_peft import Scales, pair, stated_scales
from edm2lite.interop.lora_tensors import Pair, Part, alpha_scale, changes, gathered
from edm2lite.network.low_rank import Factors
from edm2lite.strict_json import parse_object

WEIGHTS = "pytorch_lora_weights.safetensors"
CONFIG = "lora_adapter_metadata"
"""Key of the metadata under which newer files have the configuration of peft, as JSON."""

PARTS = ("unet", "transformer")
"""Parts of a pipeline that are networks like ours."""

SUFFIXES: dict[str, Part] = {
    **PEFT,
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".alpha": "alpha",
}


def read(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], names: LayerNames
) -> dict[str, Factors]:
    """The changes in such a file, by the names of layers.

    Args:
        tensors: Tensors of the file.
        metadata: Metadata of the file.
        names: Layers of the network.

    Raises:
        ValueError: As :class:`edm2lite.interop.lora_peft.Scales` and
            :func:`edm2lite.interop.lora_tensors.gathered`.

    Example:
        >>> import torch
        >>> tensors = {
        ...     "transformer.layers.0.fc.lora.down.weight": torch.ones(2, 3),
        ...     "transformer.layers.0.fc.lora.up.weight": torch.ones(4, 2),
        ... }
        >>> names = LayerNames({"backbone.layers.0.fc": (4, 3)}, "backbone")
        >>> read(tensors, {}, names)["backbone.layers.0.fc"].scale
        1.0
    """
    config = _config(metadata)
    scales = {part: Scales(values) for part, values in config.items()}
    found = gathered(tensors, SUFFIXES, lambda stem: _resolved(stem, names))

    def scale_of(name: str, factors: Pair, rank: int) -> float:
        part, _, path = factors.key.partition(".")
        if part not in scales:
            return alpha_scale(factors, rank)
        if factors.alpha is not None:
            raise ValueError(f"must state its scales once, it has alphas and {CONFIG}")
        return scales[part].of(path, rank)

    return changes(found, names, scale_of)


def written(
    adapted: Mapping[str, Factors], names: LayerNames
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of such a file; layers by their paths within the network.

    Args:
        adapted: Changes by the names of layers.
        names: Layers of the network.

    Example:
        >>> import torch
        >>> change = Factors(torch.ones(2, 3), torch.ones(4, 2), 0.5)
        >>> names = LayerNames({"unet.enc.a": (4, 3)}, "unet")
        >>> list(written({"unet.enc.a": change}, names)[0])
        ['unet.enc.a.lora_A.weight', 'unet.enc.a.lora_B.weight']
    """
    part = PARTS[0] if names.prefix == PARTS[0] else PARTS[1]
    inner = {names.inner(name): change for name, change in adapted.items()}
    tensors: dict[str, Tensor] = {}
    for path, change in inner.items():
        tensors |= pair(f"{part}.{path}", change)
    config = {**stated_scales(inner), "target_modules": list(inner), "bias": "none"}
    return tensors, {CONFIG: json.dumps({f"{part}.{name}": v for name, v in config.items()})}


def _resolved(stem: str, names: LayerNames) -> str:
    part, _, path = stem.partition(".")
    return names.of_path(path if part in PARTS else stem)


def _config(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Configurations of peft by the part of the pipeline that they are for."""
    if CONFIG not in metadata:
        return {}
    try:
        stated = parse_object(metadata[CONFIG])
    except ValueError as error:
        raise ValueError(f"must have JSON as {CONFIG}, but {error}") from error
    found: dict[str, dict[str, Any]] = {}
    for key, value in stated.items():
        part, _, name = key.partition(".")
        found.setdefault(part, {})[name] = value
    return {part: values for part, values in found.items() if part in PARTS}
