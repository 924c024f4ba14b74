"""Averages of what LoRA adds to the weights, rather than of its two factors.

A layer computes with W + s B A. The average of the products B A is not the product of the averages
of B and of A: they differ by the covariance of the factors over the averaged steps. To average the
weights, one must average the products, which :func:`merged_deltas` provides for the tracker.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def merged_deltas(model: nn.Module, adapter: str = "default") -> dict[str, Tensor]:
    """What LoRA adds to each adapted weight, s B A, by the name of the weight in the base model.

    Give it to the tracker as ``PowerFunctionEMA(merged_deltas(model))`` and ``update(nimg,
    merged_deltas(model))``, or to a callback as ``source=merged_deltas``. Each average takes as
    much memory as the adapted weights.

    Args:
        model: Model with LoRA layers of peft.
        adapter: Name of the adapter.

    Returns:
        Name -> delta, of the shape of the weight.

    Raises:
        ValueError: If the model has no such adapter, also trains other parameters, or has layers
            that do more than add s B A (DoRA): its deltas would not describe it.

    Example:
        >>> from peft import LoraConfig, get_peft_model
        >>> config = LoraConfig(r=2, target_modules=["0"])
        >>> model = get_peft_model(nn.Sequential(nn.Linear(4, 3)), config)
        >>> {name: delta.shape for name, delta in merged_deltas(model).items()}
        {'0.weight': torch.Size([3, 4])}
    """
    layers: dict[str, Any] = {
        _weight_name(name, layer): layer
        for name, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight") and adapter in getattr(layer, "lora_A", {})
    }
    if not layers:
        raise ValueError(
            f"the model must have LoRA layers of peft named {adapter!r}, found none; give the name"
            " of the adapter"
        )
    if any(_is_more_than_product(layer, adapter) for layer in layers.values()):
        raise ValueError(
            "LoRA must add s B A and nothing else, these layers are of another kind (DoRA,"
            " lora_bias, ...); average the whole model"
        )
    lora = {id(p) for layer in layers.values() for p in layer.parameters()}
    others = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in lora]
    if others:
        raise ValueError(
            f"only LoRA may be trained, these parameters are too: {others[:5]}; average them in one"
            " mapping with the deltas, or average the whole model"
        )
    return {name: layer.get_delta_weight(adapter) for name, layer in layers.items()}


def _weight_name(name: str, layer: Any) -> str:
    """Name in the base model of the weight that a layer of peft adapts, as a layer or by itself."""
    inner = name.removeprefix("base_model.model.").replace(".base_layer", "")
    return f"{inner}.{getattr(layer, 'parameter_name', 'weight')}"


def _is_more_than_product(layer: Any, adapter: str) -> bool:
    kinds = ("use_dora", "lora_bias", "lora_variant")
    return any(getattr(layer, kind, {}).get(adapter) for kind in kinds)


@torch.no_grad()
def add_deltas(base: nn.Module, deltas: Mapping[str, Tensor]) -> None:
    """Add averaged deltas to the weights of the base model, in place.

    Args:
        base: The model without LoRA.
        deltas: Name of each weight -> what is added to it.

    Raises:
        ValueError: If ``base`` lacks one of the weights or has it in another shape. Nothing is
            changed in that case.

    Example:
        >>> base = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.ones_(base.weight)
        >>> add_deltas(base, {"weight": torch.tensor([[0.5, -1.0]])})
        >>> base.weight.data
        tensor([[1.5000, 0.0000]])
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
