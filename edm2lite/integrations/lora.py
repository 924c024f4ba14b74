"""Average what LoRA adds to the weights, not its two factors.

A layer computes with W + s B A. The average of the products B A is not the product of the averages
of B and of A: the difference is the covariance of the factors over what is averaged. Averaged
weights therefore mean averaged products, which :func:`merged_deltas` gives to the tracker.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def merged_deltas(model: nn.Module, adapter: str = "default") -> dict[str, Tensor]:
    """Name of each weight in the base model -> what LoRA adds to it, s B A, shaped like the weight.

    For ``PowerFunctionEMA(merged_deltas(model))`` and ``update(nimg, merged_deltas(model))``, or
    ``source=merged_deltas`` of a callback. Averages then take the memory of the adapted weights.

    Args:
        model: With LoRA layers of peft.
        adapter: Name of the adapter.

    Raises:
        ValueError: The model has no such adapter, or trains something else too, or its weights are
            no sum (DoRA): the deltas alone would not be the model.
    """
    layers: dict[str, Any] = {
        name.removeprefix("base_model.model."): layer
        for name, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight") and adapter in getattr(layer, "lora_A", {})
    }
    if not layers:
        raise ValueError(f"the model must have LoRA layers of peft named {adapter!r}, found none")
    if any(_is_more_than_product(layer, adapter) for layer in layers.values()):
        raise ValueError(
            "LoRA must add s B A and nothing else, these layers are of another kind (DoRA,"
            " lora_bias, ...); average the whole model"
        )
    lora = {id(p) for layer in layers.values() for p in layer.parameters()}
    others = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in lora]
    if others:
        raise ValueError(
            f"besides LoRA these parameters train: {others[:5]}; average them too, in one mapping"
            " with the deltas of your own, or the whole model"
        )
    return {f"{name}.weight": layer.get_delta_weight(adapter) for name, layer in layers.items()}


def _is_more_than_product(layer: Any, adapter: str) -> bool:
    kinds = ("use_dora", "lora_bias", "lora_variant")
    return any(getattr(layer, kind, {}).get(adapter) for kind in kinds)


@torch.no_grad()
def add_deltas(base: nn.Module, deltas: Mapping[str, Tensor]) -> None:
    """Add averaged deltas to the weights of ``base``, the model without LoRA.

    Raises:
        ValueError: ``base`` lacks one of the weights, or it has another shape. Nothing has changed.
    """
    weights = dict(base.named_parameters())
    wrong = [n for n, d in deltas.items() if n not in weights or weights[n].shape != d.shape]
    if wrong:
        raise ValueError(
            f"the model must have the weights that LoRA was added to, it lacks {wrong[:5]} or has"
            " them in other shapes; give the base model, without LoRA"
        )
    for name, delta in deltas.items():
        weights[name].add_(delta.to(weights[name]))
