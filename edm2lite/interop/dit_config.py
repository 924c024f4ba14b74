"""Configurations of imported DiT networks, and whether tensors fit them.

Messages continue a sentence that begins with the name of the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from edm2lite.interop.inert_pickle import shown
from edm2lite.network.dit import DiTConfig
from edm2lite.network.patches import sine_positions
from edm2lite.network.transformer import PRESETS
from edm2lite.tensorfile import all_finite


def config_of(tensors: Mapping[str, Tensor]) -> DiTConfig:
    """The configuration of a released network, from the shapes of its tensors.

    Args:
        tensors: State dict with the released names.

    Raises:
        ValueError: If a tensor is missing, or shapes do not fit each other.

    Example:
        >>> config_of({"x_embedder.proj.weight": torch.ones(384, 4, 8, 8)})
        Traceback (most recent call last):
        ValueError: must hold all tensors of a DiT, pos_embed is missing
    """

    def shape(name: str, ndim: int) -> tuple[int, ...]:
        if name not in tensors:
            raise ValueError(f"must hold all tensors of a DiT, {name} is missing")
        if tensors[name].ndim != ndim:
            raise ValueError(f"must hold a DiT, {name} has the shape {list(tensors[name].shape)}")
        return tuple(tensors[name].shape)

    width, channels, patch, _ = shape("x_embedder.proj.weight", 4)
    tokens, values = shape("pos_embed", 3)[1], shape("final_layer.linear.weight", 2)[0]
    blocks = [int(m[1]) for m in map(re.compile(r"blocks\.(\d+)\.").match, tensors) if m]
    heads = {preset["width"]: preset["num_heads"] for preset in PRESETS.values()}
    side = round(tokens**0.5)
    if width not in heads:
        widths = ", ".join(map(str, heads))
        raise ValueError(f"must hold a DiT of a known width ({widths}), its width is {width}")
    if values not in (patch**2 * channels, 2 * patch**2 * channels) or side**2 != tokens:
        raise ValueError(
            f"must hold a DiT, whose tensors fit each other; it has {tokens} positions and"
            f" {values} outputs for patches of {channels}x{patch}x{patch} values"
        )
    return DiTConfig(
        img_resolution=side * patch,
        img_channels=channels,
        label_dim=shape("y_embedder.embedding_table.weight", 2)[0] - 1,
        patch_size=patch,
        width=width,
        num_blocks=max(blocks, default=0) + 1,
        num_heads=heads[width],
        mlp_ratio=max(1, shape("blocks.0.mlp.fc1.weight", 2)[0] // width),
        time_scale=1.0,
        predicts_variance=values == 2 * patch**2 * channels,
    )


def config_of_diffusers(values: Mapping[str, Any]) -> DiTConfig:
    """The configuration of a network, from the ``config.json`` of diffusers.

    Args:
        values: Content of the file.

    Raises:
        ValueError: If it describes another model.

    Example:
        >>> config_of_diffusers({"_class_name": "UNet2DModel"})
        Traceback (most recent call last):
        ValueError: must hold a DiTTransformer2DModel, its config.json is of something else
    """
    if not isinstance(values, dict) or values.get("_class_name") != "DiTTransformer2DModel":
        raise ValueError("must hold a DiTTransformer2DModel, its config.json is of something else")
    fixed = {
        "norm_type": "ada_norm_zero", "activation_fn": "gelu-approximate", "attention_bias": True,
        "norm_elementwise_affine": False,
    }  # fmt: skip
    for name, value in fixed.items():
        if values.get(name, value) != value:
            raise ValueError(f"must hold a DiT as published, its {name} is {values[name]!r}")
    if not 0 < values.get("norm_eps", 1e-5) <= 1e-5:
        raise ValueError(f"must hold a DiT as published, its norm_eps is {values['norm_eps']}")
    channels, heads = values["in_channels"], values["num_attention_heads"]
    outputs = values.get("out_channels") or channels
    if outputs not in (channels, 2 * channels):
        raise ValueError(f"must predict {channels} or {2 * channels} channels, not {outputs}")
    return DiTConfig(
        img_resolution=values["sample_size"],
        img_channels=channels,
        label_dim=values["num_embeds_ada_norm"],
        patch_size=values["patch_size"],
        width=heads * values["attention_head_dim"],
        num_blocks=values["num_layers"],
        num_heads=heads,
        time_scale=1.0,
        freq_shift=1.0,
        predicts_variance=outputs == 2 * channels,
    )


def check_positions(found: Tensor, config: DiTConfig) -> None:
    """Raise ValueError unless these are the fixed positions of DiT.

    Args:
        found: The tensor ``pos_embed``.
        config: Configuration of the network.
    """
    side = config.side
    fixed = sine_positions(side, side, side, config.width, torch.device("cpu"))
    if found.shape != (1, *fixed.shape) or (found[0] - fixed).abs().max() > 1e-3:
        raise ValueError("must hold a DiT as published, its pos_embed is not the fixed one")


def check_tensors(tensors: Mapping[str, Tensor], config: DiTConfig) -> None:
    """Raise ValueError unless these are the tensors of the network, all of them and finite.

    Args:
        tensors: State dict of our network; messages have the released names.
        config: Configuration of the network.
    """
    with torch.device("meta"):
        expected = config.build().state_dict()
    for name, value in expected.items():
        theirs = re.sub("^layers", "blocks", name)
        if name not in tensors:
            raise ValueError(f"must hold all tensors of a DiT, {theirs} is missing")
        if tensors[name].shape != value.shape:
            raise ValueError(
                f"must hold the tensors of one DiT: {theirs} should be {list(value.shape)} and is"
                f" {list(tensors[name].shape)}"
            )
        if not all_finite(tensors[name]):
            raise ValueError(f"must hold finite weights, {theirs} is not")
    unknown = sorted(set(tensors) - set(expected))
    if unknown:
        raise ValueError(f"must hold a DiT and nothing else, it also has {shown(unknown[0])}")
