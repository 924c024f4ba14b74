"""Low-rank adapters as files of other tools, with and without weight normalization.

Inside weight normalization, W = normalize(W0 + s B A), such a file holds the factors as they are. A
tool without weight normalization adds a change to what a layer computes with; for such a tool the
change is ``normalize(W0 + s B A) - normalize(W0)``, which has full rank: its best approximation of
a lower rank is written, with the error that this makes, or else all weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from edm2lite.diffusion.precond import Precond
from edm2lite.interop.adapter_import import BASE, layer_names, normalized_layers
from edm2lite.interop.lora_files import Place, Tool, write_lora
from edm2lite.models.adapters import Adapter
from edm2lite.models.loading import load_adapter, with_adapters
from edm2lite.models.model import Model
from edm2lite.models.strengths import parse_strength
from edm2lite.network.layers import MPConv
from edm2lite.network.low_rank import Factorization, Factors, added, factorize
from edm2lite.tensorfile import save_tensors

WEIGHTS = "edm2lite.weights"
"""Key of the metadata of plain weights; its value is ``normalized``."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: The file or folder.
        ranks: Layer -> rank of its factors.
        errors: Layer -> relative error of the factors (Frobenius); 0 where they are exact.
        error: Relative error of the changes of all layers together.
    """

    path: Path
    ranks: Mapping[str, int]
    errors: Mapping[str, float]
    error: float


def with_strengths(texts: Sequence[str]) -> list[tuple[Adapter, float]]:
    """Adapters and strengths, each from ``NAME`` or ``NAME:STRENGTH``.

    Args:
        texts: Names of adapters (files, runs, averages of runs), with strengths or without.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is damaged or no adapter, or a strength is not finite.
    """
    parsed = [parse_strength(text) for text in texts]
    return [(load_adapter(name), strength) for name, strength in parsed]


def export_lora(
    out: str | Path,
    tool: Tool,
    base: Model,
    adapters: Sequence[tuple[Adapter, float]],
    *,
    place: Place = "inside-wn",
    rank: int | None = None,
    max_error: float | None = None,
) -> Exported:
    """Write low-rank adapters as one LoRA file of another tool.

    Args:
        out: The file; for peft, a folder that does not exist.
        tool: Tool whose keys the file gets.
        base: The model that the adapters were trained on.
        adapters: Adapters and their strengths; their changes are added up.
        place: ``inside-wn``, the changes as they are; or ``outside-wn``, for tools without weight
            normalization.
        rank: Largest rank of a layer. Without it, and without ``max_error``, the factors of the
            adapters are written as they are, which is possible inside weight normalization only.
        max_error: Largest relative error of a layer, in place of a rank.

    Raises:
        ValueError: If an adapter is of another kind or for another model, or a rank is needed.
    """
    for adapter, _ in adapters:
        adapter.check_base(base.identity, base.name)
        if adapter.own_tensors or adapter.backbone or adapter.text:
            raise ValueError(
                f"{adapter.name} must change weights and nothing else to be written as LoRA, it is"
                f" of kind {adapter.kind}; merge it into a model"
            )
    is_exact = rank is None and max_error is None
    if place == "outside-wn" and is_exact:
        raise ValueError(
            "a rank or a largest error must be given for changes outside of weight normalization,"
            " which have full rank; or export plain weights"
        )
    if is_exact:
        changes = _factors(adapters)
        errors = dict.fromkeys(changes, 0.0)
    else:
        deltas = _deltas(adapters) if place == "inside-wn" else _outside(base, adapters)
        found = {n: factorize(d, rank, max_error=max_error) for n, d in deltas.items() if d.any()}
        changes, errors = _split(found)
    if not changes:
        raise ValueError("adapters must change something to be exported, these change nothing")
    metadata = {BASE: base.identity}
    names = layer_names(base)
    path = write_lora(out, tool, changes, names, place=place, metadata=metadata)
    # rows of a factorization are orthogonal, so what is missing follows from what is there
    kept = {name: float(c.delta().double().square().sum()) for name, c in changes.items()}
    missing = sum(kept[n] * errors[n] ** 2 / max(1 - errors[n] ** 2, 1e-12) for n in kept)
    error = math.sqrt(missing / (missing + sum(kept.values()))) if missing else 0.0
    return Exported(path, {name: c.rank for name, c in changes.items()}, errors, error)


def export_weights(out: str | Path, model: Model) -> Path:
    """Write what the layers of a model compute with, for tools without weight normalization.

    Args:
        out: The safetensors file.
        model: The model, with adapters merged into it.

    Returns:
        ``out``.
    """
    told = {"format": "pt", WEIGHTS: "normalized", "model": model.net.config.to_json()}
    return save_tensors(Path(out), plain_weights(model.net), told)


@torch.no_grad()
def plain_weights(net: Precond) -> dict[str, Tensor]:
    """The state dict, with the weights of magnitude-preserving layers as the layers apply them.

    Rows are normalized and multiplied by the constants of the layer (Eq. 47), in the order in which
    they are stored; learned gains stay apart.

    Args:
        net: The denoiser.

    Example:
        >>> from edm2lite.diffusion.precond import PrecondConfig
        >>> from edm2lite.network.unet import UNetConfig
        >>> unet = UNetConfig(img_resolution=8, img_channels=1, model_channels=8, channel_mult=(1,),
        ...                   num_blocks=1, attn_resolutions=(), head_channels=8)
        >>> weights = plain_weights(Precond(PrecondConfig(backbone=unet)))
        >>> weights["unet.emb_noise.weight"].norm(dim=1).mean().round(decimals=3)
        tensor(1.)
    """
    found = dict(net.state_dict())
    for name, layer in normalized_layers(net).items():
        found[f"{name}.weight"] = MPConv.normalized_weight(layer, torch.float32)
    return found


def _factors(adapters: Sequence[tuple[Adapter, float]]) -> dict[str, Factors]:
    """Layer -> the sum of the factors of all adapters."""
    parts: dict[str, list[Factors]] = {}
    for adapter, strength in (one for one in adapters if one[1]):  # kohya reads alpha 0 as r
        factors = adapter.factors()
        dense = [layer for layer in adapter.deltas() if layer not in factors]
        if dense:
            raise ValueError(
                f"a rank or a largest error must be given for {adapter.name}, which is an average:"
                f" it holds all of what is added to {dense[0]}, and no factors"
            )
        for layer, change in factors.items():
            parts.setdefault(layer, []).append(change.scaled(strength))
    return {layer: added(changes) for layer, changes in parts.items()}


def _deltas(adapters: Sequence[tuple[Adapter, float]]) -> dict[str, Tensor]:
    """Layer -> the sum of what all adapters add to its stored weight."""
    total: dict[str, Tensor] = {}
    for adapter, strength in adapters:
        for layer, delta in adapter.deltas().items():
            total[layer] = total.get(layer, torch.zeros_like(delta)) + strength * delta
    return total


def _outside(base: Model, adapters: Sequence[tuple[Adapter, float]]) -> dict[str, Tensor]:
    """Layer -> what adapters change of the weight that it computes with, in float32."""
    before, merged = plain_weights(base.net), base
    if (deltas := _deltas(adapters)) and any(delta.any() for delta in deltas.values()):
        tensors = {f"{layer}.delta": delta for layer, delta in deltas.items()}
        merged = with_adapters(base, [Adapter("the sum of adapters", "lora", tensors)])
    after = plain_weights(merged.net)
    return {layer: after[f"{layer}.weight"] - before[f"{layer}.weight"] for layer in deltas}


def _split(
    found: Mapping[str, Factorization],
) -> tuple[dict[str, Factors], dict[str, float]]:
    changes = {name: one.change for name, one in found.items()}
    return changes, {name: one.error for name, one in found.items()}
