"""Names of DiT's tensors: ours, the released ones, and those of diffusers.

The released names say ``blocks`` where ours say ``layers``; otherwise they are the same.

diffusers keeps queries, keys and values apart, and repeats the embedding of time and class, which
all blocks share, in every block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_PAIRS = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
_EMBEDDING = {
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
}
_IN_BLOCK = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
_QKV = tuple(f"attn1.to_{letter}" for letter in "qkv")


def to_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a ``DiTTransformer2DModel`` from that of our DiT.

    Example:
        >>> qkv = torch.arange(6.0).reshape(6, 1)
        >>> list(to_diffusers({"layers.0.attn.qkv.weight": qkv}))[0]
        'transformer_blocks.0.attn1.to_q.weight'
    """
    blocks = sorted({int(m[1]) for m in map(re.compile(r"layers\.(\d+)\.").match, tensors) if m})
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        stem, _, kind = name.rpartition(".")
        block, inner = _block_of(stem, "layers")
        prefix = f"transformer_blocks.{block}"
        if stem in _EMBEDDING:
            for i in blocks:
                found[f"transformer_blocks.{i}.norm1.emb.{_EMBEDDING[stem]}.{kind}"] = value
        elif inner == "attn.qkv":
            parts = zip(_QKV, value.chunk(3), strict=True)
            found.update({f"{prefix}.{part}.{kind}": rows for part, rows in parts})
        elif inner in _IN_BLOCK:
            found[f"{prefix}.{_IN_BLOCK[inner]}.{kind}"] = value
        else:
            found[f"{_PAIRS[stem]}.{kind}"] = value
    return found


def from_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of our DiT from that of a ``DiTTransformer2DModel``.

    Args:
        tensors: State dict of the model of diffusers.

    Raises:
        ValueError: If a tensor is missing or not known, or blocks do not share the embedding. The
            message continues a sentence that begins with the name of the file.

    Example:
        >>> from_diffusers({"proj_out_2.bias": torch.zeros(1)})
        {'final_layer.linear.bias': tensor([0.])}
    """
    ours = {theirs: name for name, theirs in {**_PAIRS, **_IN_BLOCK}.items()}
    embedding = {f"norm1.emb.{theirs}": name for name, theirs in _EMBEDDING.items()}
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        stem, _, kind = name.rpartition(".")
        block, inner = _block_of(stem, "transformer_blocks")
        if inner in embedding:
            shared = found.setdefault(f"{embedding[inner]}.{kind}", value)
            if not torch.equal(shared, value):
                raise ValueError(
                    f"must share the embedding of time and class among all blocks, {name} differs"
                )
        elif inner in _QKV:
            if inner == _QKV[0]:
                prefix = f"transformer_blocks.{block}"
                parts = [_existing(tensors, f"{prefix}.{part}.{kind}") for part in _QKV]
                found[f"layers.{block}.attn.qkv.{kind}"] = torch.cat(parts)
        elif inner in ours and block is not None:
            found[f"layers.{block}.{ours[inner]}.{kind}"] = value
        elif stem in ours and block is None:
            found[f"{ours[stem]}.{kind}"] = value
        else:
            raise ValueError(f"must hold a DiTTransformer2DModel, which has no {name}")
    return found


def _block_of(stem: str, blocks: str) -> tuple[int | None, str]:
    """Number of the block that a name belongs to, if any, and the name within it."""
    match = re.match(rf"{blocks}\.(\d+)\.", stem)
    return (int(match[1]), stem[match.end() :]) if match else (None, stem)


def _existing(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise ValueError(f"must hold all tensors of a DiTTransformer2DModel, {name} is missing")
    return tensors[name]
