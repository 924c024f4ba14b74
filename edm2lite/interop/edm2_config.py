"""The configuration of an official EDM2 network, from what it was built with and what it says.

Settings stand in ``_init_kwargs`` of the network and of its parts, and as attributes of the parts.
Where several say the same thing they must agree; what our network cannot do is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edm2lite.diffusion.precond import PrecondConfig
from edm2lite.interop.inert_pickle import shown
from edm2lite.interop.torch_records import Instance, as_mapping, plain
from edm2lite.network.unet import UNetConfig

_UNET = {
    "img_resolution": "img_resolution",
    "img_channels": "img_channels",
    "label_dim": "label_dim",
    "model_channels": "model_channels",
    "channel_mult": "channel_mult",
    "num_blocks": "num_blocks",
    "attn_resolutions": "attn_resolutions",
    "channels_per_head": "head_channels",
    "dropout": "dropout",
    "label_balance": "label_balance",
    "concat_balance": "concat_balance",
    "res_balance": "res_balance",
    "attn_balance": "attn_balance",
    "clip_act": "clip_act",
}
_FIXED = {"channel_mult_noise": None, "channel_mult_emb": None, "resample_filter": [1, 1]}
_SETTINGS = {*_UNET, *_FIXED, "use_fp16", "sigma_data", "logvar_channels"}
_LISTS = {"channel_mult", "attn_resolutions"}
_SHARES = {"dropout", "label_balance", "concat_balance", "res_balance", "attn_balance"}
_POSITIVE = {"clip_act", "sigma_data"}
_MAX = 2**16  # of a width, a count or a resolution
_MAX_LEVELS = 16
_TENSORS_OF_BLOCK = 4  # at least


def configuration(parts: Mapping[str, Instance], num_tensors: int) -> PrecondConfig:
    """The configuration of a network, whose size ``num_tensors`` bounds.

    Args:
        parts: Prefix -> module, the whole network under "".
        num_tensors: That the file holds.

    Raises:
        ValueError: Settings that our network does not have, that contradict each other, or that
            are no settings at all.
    """
    values = _values(parts)
    for name in ("img_resolution", "img_channels", "label_dim"):
        if name not in values:
            raise ValueError(f"must say its {name} and does not")
    unet = {ours: values[name] for name, ours in _UNET.items() if name in values}
    around = {name: values[name] for name in ("sigma_data", "logvar_channels") if name in values}
    try:
        network = UNetConfig(**unet)
        config = PrecondConfig(
            backbone=network,
            dtype="float16" if values.get("use_fp16", True) else "float32",
            **around,
        )
    except ValueError as error:
        raise ValueError(f"describes a network that ours cannot be: {error}") from error
    levels, blocks = len(network.channel_mult), 2 * network.num_blocks + 1
    widest = network.model_channels * max(network.channel_mult)
    if _TENSORS_OF_BLOCK * levels * blocks > num_tensors or widest > _MAX:
        raise ValueError(
            f"describes {levels * blocks} blocks of up to {widest} channels, which the"
            f" {num_tensors} tensors that it holds cannot be"
        )
    return config


def _values(parts: Mapping[str, Instance]) -> dict[str, Any]:
    """Official name -> value of all settings that are made anywhere."""
    values: dict[str, Any] = {}
    for prefix, part in parts.items():
        if part.class_name not in ("Precond", "UNet", "Block"):
            continue
        where = prefix.rstrip(".") or "ema"
        given = as_mapping(part.attributes.get("_init_kwargs", {}), f"settings of {where}")
        if part.class_name != "Block":
            strange = [shown(name) for name in given if name not in _SETTINGS]
            if strange:
                raise ValueError(f"sets {', '.join(strange[:5])}, which our network does not have")
        for source in (given, part.attributes):
            for name in _SETTINGS & source.keys():
                value = _checked(name, plain(source[name], f"{name} of {where}"), where)
                if values.setdefault(name, value) != value:
                    raise ValueError(
                        f"contradicts itself: {name} is {values[name]}, but {value} in {where}"
                    )
    if parts[""].attributes.get("_init_args"):
        raise ValueError("sets values without their names, which ours does not understand")
    return values


def _checked(name: str, value: object, where: str) -> Any:
    """The value of a setting in our form, if it is one at all."""
    if name in _FIXED:
        if value == _FIXED[name]:
            return value
        wanted = f"{_FIXED[name]}, the only value that our network has"
    elif name in _LISTS:
        if isinstance(value, list) and len(value) <= _MAX_LEVELS:
            if all(_is_count(n) for n in value) and (value or name != "channel_mult"):
                return tuple(value)
        wanted = "a list of whole numbers"
    elif name in _SHARES or name in _POSITIVE:
        top = 1.0 if name in _SHARES else math.inf
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= top:
            if math.isfinite(value) and (value or name in _SHARES):
                return float(value)
        wanted = "a number from 0 to 1" if name in _SHARES else "a positive number"
    elif name == "use_fp16":
        if isinstance(value, bool):
            return value
        wanted = "True or False"
    else:
        if _is_count(value) or (name == "label_dim" and type(value) is int and value == 0):
            return value
        wanted = f"a whole number up to {_MAX}"
    raise ValueError(f"must have {wanted}, as {name}, has {shown(value)} in {where}")


def _is_count(value: object) -> bool:
    return type(value) is int and 1 <= value <= _MAX
