"""The configuration of an official EDM2 network, from the settings that its pickle records.

Settings are recorded in ``_init_args`` and ``_init_kwargs`` of the network and of its parts, and as
attributes of the parts. If one is recorded several times, the values must agree. Settings that the
network of this package does not have are refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from edm2lite.diffusion.precond import PrecondConfig
from edm2lite.interop.inert_pickle import shown
from edm2lite.interop.plain_records import plain
from edm2lite.interop.torch_records import Instance, arguments
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
_POSITIONS = {  # the arguments of the official classes, in their order
    "Precond": (
        "img_resolution", "img_channels", "label_dim", "use_fp16", "sigma_data", "logvar_channels",
    ),
    "UNet": (
        "img_resolution", "img_channels", "label_dim", "model_channels", "channel_mult",
        "channel_mult_noise", "channel_mult_emb", "num_blocks", "attn_resolutions", "label_balance",
        "concat_balance",
    ),
    "Block": (
        "in_channels", "out_channels", "emb_channels", "flavor", "resample_mode", "resample_filter",
        "attention", "channels_per_head", "dropout", "res_balance", "attn_balance", "clip_act",
    ),
}  # fmt: skip
_LISTS = {"channel_mult", "attn_resolutions"}
_SHARES = {"dropout", "label_balance", "concat_balance", "res_balance", "attn_balance"}
_POSITIVE = {"clip_act", "sigma_data"}
_MAX = 2**16  # largest width, count or resolution
_MAX_LEVELS = 16  # largest number of entries in a list
_TENSORS_OF_BLOCK = 4  # smallest number of tensors in a block


def configuration(parts: Mapping[str, Instance], num_tensors: int) -> PrecondConfig:
    """The configuration of a network.

    Args:
        parts: Prefix of its tensors -> module; the whole network has the prefix "".
        num_tensors: Number of tensors in the file, which bounds the size of the network.

    Raises:
        ValueError: If settings are invalid, contradict each other, or are not supported here. The
            message continues a sentence that begins with the name of the file.
    """
    values = _values(parts)
    for name in ("img_resolution", "img_channels", "label_dim"):
        if name not in values:
            raise ValueError(f"must record its {name}, and does not")
    unet = {field: values[name] for name, field in _UNET.items() if name in values}
    around = {name: values[name] for name in ("sigma_data", "logvar_channels") if name in values}
    try:
        network = UNetConfig(**unet)
        config = PrecondConfig(
            backbone=network,
            dtype="float16" if values.get("use_fp16", True) else "float32",
            **around,
        )
    except ValueError as error:
        raise ValueError(f"describes a network that is not supported here: {error}") from error
    levels, blocks = len(network.channel_mult), 2 * network.num_blocks + 1
    widest = network.model_channels * max(network.channel_mult)
    if _TENSORS_OF_BLOCK * levels * blocks > num_tensors or widest > _MAX:
        raise ValueError(
            f"describes {levels * blocks} blocks of up to {widest} channels, too many for the"
            f" {num_tensors} tensors that it holds"
        )
    return config


def _values(parts: Mapping[str, Instance]) -> dict[str, Any]:
    """Official name -> value of every setting that is recorded anywhere."""
    values: dict[str, Any] = {}
    for prefix, part in parts.items():
        if part.class_name not in _POSITIONS:
            continue
        where = prefix.rstrip(".") or "ema"
        given = arguments(part, _POSITIONS[part.class_name], where)
        if part.class_name != "Block":
            unknown = [shown(name) for name in given if name not in _SETTINGS]
            if unknown:
                raise ValueError(f"sets {', '.join(unknown[:5])}, which is not supported here")
        for source in (given, part.attributes):
            for name in _SETTINGS & source.keys():
                value = _checked(name, plain(source[name], f"{name} of {where}"), where)
                if values.setdefault(name, value) != value:
                    raise ValueError(
                        f"contradicts itself: {name} is {values[name]}, but {value} in {where}"
                    )
    return values


def _checked(name: str, value: object, where: str) -> Any:
    """The value of a setting in the form used here.

    Raises:
        ValueError: If the setting cannot have this value.
    """
    if name in _FIXED:
        if value == _FIXED[name]:
            return value
        expected = f"{_FIXED[name]}, the only value supported here,"
    elif name in _LISTS:
        if isinstance(value, list) and _are_counts(value) and (value or name != "channel_mult"):
            return tuple(value)
        expected = "a list of whole numbers"
    elif name in _SHARES:
        if _is_number(value) and 0 <= value <= 1:
            return float(value)
        expected = "a number from 0 to 1"
    elif name in _POSITIVE:
        if _is_number(value) and 0 < value < math.inf:
            return float(value)
        expected = "a positive number"
    elif name == "use_fp16":
        if isinstance(value, bool):
            return value
        expected = "True or False"
    else:
        if _is_count(value) or (name == "label_dim" and type(value) is int and value == 0):
            return value
        expected = f"a whole number up to {_MAX}"
    raise ValueError(f"must have {expected} as {name}, has {shown(value)} in {where}")


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_counts(values: list[object]) -> bool:
    return len(values) <= _MAX_LEVELS and all(_is_count(n) for n in values)


def _is_count(value: object) -> bool:
    return type(value) is int and 1 <= value <= _MAX
