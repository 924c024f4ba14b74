"""Factors of LoRA from the tensors of a file: what belongs together, and whether it fits.

Messages continue a sentence that begins with the name of the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from edm2lite.interop.inert_pickle import shown
from edm2lite.interop.lora_names import LayerNames
from edm2lite.network.low_rank import Factors
from edm2lite.tensorfile import all_finite

Part = Literal["down", "up", "alpha"]
_TEXT = ("lora_te", "text_encoder", "text_model.")
_DORA = ("dora_scale", "lora_magnitude_vector")
_OTHER_METHODS = {"hada_": "LoHa", "lokr_": "LoKr", "lora_mid": "a Tucker decomposition"}


@dataclass
class Pair:
    """What a file has of one layer.

    Attributes:
        key: Name of the layer in the file.
        down: [r, in] or [r, in, k, k].
        up: [out, r] or [out, r, 1, 1].
        alpha: Number by which the scale is stated, if it is stated beside the factors.
    """

    key: str
    down: Tensor | None = None
    up: Tensor | None = None
    alpha: Tensor | None = None


def gathered(
    tensors: Mapping[str, Tensor],
    suffixes: Mapping[str, Part],
    name_of: Callable[[str], str],
) -> dict[str, Pair]:
    """The factors of every layer, by the name of the layer.

    Args:
        tensors: Tensors of the file.
        suffixes: End of a key -> what the tensor is.
        name_of: Function from the key without its end to the name of the layer.

    Raises:
        ValueError: If there is anything besides factors of layers of the network, a factor is
            missing or there twice, or a value is not finite.

    Example:
        >>> import torch
        >>> keys = {".lora_A.weight": "down", ".lora_B.weight": "up"}
        >>> tensors = {"x.lora_A.weight": torch.ones(1, 3), "x.lora_B.weight": torch.ones(2, 1)}
        >>> list(gathered(tensors, keys, str))
        ['x']
    """
    found: dict[str, Pair] = {}
    for key, value in tensors.items():
        check_key(key)
        suffix = next((s for s in suffixes if key.endswith(s)), None)
        if suffix is None:
            raise ValueError(f"must hold factors of LoRA and nothing else, it holds {shown(key)}")
        stem = key.removesuffix(suffix)
        part = suffixes[suffix]
        factors = found.setdefault(name_of(stem), Pair(stem))
        if getattr(factors, part) is not None:
            raise ValueError(f"must adapt each layer once, it has two of {shown(key)}")
        if not value.is_floating_point() or not all_finite(value):
            raise ValueError(f"must hold finite numbers, {shown(key)} has NaN, infinity or others")
        setattr(factors, part, value)
    if not found:
        raise ValueError("must hold factors of LoRA, it holds none")
    for factors in found.values():
        missing = [part for part in ("down", "up") if getattr(factors, part) is None]
        if missing:
            raise ValueError(
                f"must hold both factors of each layer, it lacks {' and '.join(missing)} of"
                f" {shown(factors.key)}"
            )
    return found


def check_key(key: str) -> None:
    """Refuse a tensor of another method, or of another network, by its key.

    Args:
        key: Key of the tensor.

    Raises:
        ValueError: If it is one.

    Example:
        >>> check_key("lora_unet_x.lora_up.weight")
    """
    if any(mark in key for mark in _DORA):
        raise ValueError(
            f"must be LoRA without magnitudes, it has those of DoRA ({shown(key)}): they would"
            " break the magnitude of 1 that layers of EDM2 preserve, where LoRA inside weight"
            " normalization is DoRA with magnitudes held fixed; train it without DoRA"
        )
    for mark, method in _OTHER_METHODS.items():
        if mark in key:
            raise ValueError(f"must be LoRA, it is {method} ({shown(key)}); train LoRA instead")
    if key.startswith(_TEXT):
        raise ValueError(
            f"must adapt the network alone, it adapts a text encoder too ({shown(key)}), which is"
            " not trained here; save the part of the network by itself"
        )


def change(factors: Pair, scale: float, shape: tuple[int, ...]) -> Factors:
    """The change of a layer, in float32, once it is known to fit.

    Args:
        factors: Both factors.
        scale: Factor s of the product.
        shape: Shape of the weight of the layer.

    Raises:
        ValueError: If the factors do not fit each other or the layer, or the scale is not finite.

    Example:
        >>> import torch
        >>> change(Pair("x", torch.ones(1, 3), torch.ones(2, 1)), 0.5, (2, 3)).delta()
        tensor([[0.5000, 0.5000, 0.5000],
                [0.5000, 0.5000, 0.5000]])
    """
    assert factors.down is not None and factors.up is not None
    down, up = factors.down.float(), factors.up.float()
    given = f"{list(down.shape)} and {list(up.shape)}"
    if up.ndim == 4 and up.shape[2:] == (1, 1):
        up = up.flatten(1)
    if len(shape) == 4 and shape[2:] == (1, 1) and down.ndim == 2:
        down = down[:, :, None, None]  # of a linear layer, which a 1x1 convolution is
    if up.ndim != 2 or down.ndim != len(shape) or up.shape[1] != len(down) or not len(down):
        raise ValueError(
            f"must hold factors of one rank for {shown(factors.key)}, whose weight is"
            f" {list(shape)}, it holds {given}"
        )
    if (len(up), *down.shape[1:]) != shape:
        raise ValueError(
            f"must fit the layers of the network, the weight of {shown(factors.key)} is"
            f" {list(shape)}, and the file has factors {given}; give the base that it was made for"
        )
    if not math.isfinite(scale):
        raise ValueError(f"must have finite scales, that of {shown(factors.key)} is {scale}")
    return Factors(down, up, scale)


def changes(
    found: Mapping[str, Pair], names: LayerNames, scale_of: Callable[[str, Pair, int], float]
) -> dict[str, Factors]:
    """The changes of all layers of a file.

    Args:
        found: Factors by the name of the layer.
        names: Layers of the network.
        scale_of: Function from name, factors and rank to the scale.

    Raises:
        ValueError: As :func:`change`.

    Example:
        >>> import torch
        >>> found = {"x": Pair("x", torch.ones(1, 3), torch.ones(2, 1))}
        >>> names = LayerNames({"x": (2, 3)}, "unet")
        >>> list(changes(found, names, lambda name, factors, rank: 1.0))
        ['x']
    """
    result = {}
    for name, factors in found.items():
        assert factors.down is not None
        rank = len(factors.down) if factors.down.ndim else 0
        scale = scale_of(name, factors, rank) if rank else 1.0  # rank 0 is refused in change()
        result[name] = change(factors, scale, names.shapes[name])
    return result


def alpha_scale(factors: Pair, rank: int) -> float:
    """The scale alpha / r, where an alpha that is missing or 0 stands for r.

    Args:
        factors: Factors with alpha.
        rank: Rank r.

    Raises:
        ValueError: If alpha is more than one number.

    Example:
        >>> import torch
        >>> alpha_scale(Pair("x", alpha=torch.tensor(2.0)), 4), alpha_scale(Pair("x"), 4)
        (0.5, 1.0)
    """
    if factors.alpha is None:
        return 1.0
    if factors.alpha.numel() != 1:
        raise ValueError(f"must have one number as alpha of {shown(factors.key)}")
    alpha = float(factors.alpha)
    return alpha / rank if alpha else 1.0


def common(values: Iterable[float]) -> float:
    """The value that occurs most often, the first of several.

    Example:
        >>> common([4, 8, 8])
        8
    """
    seen = list(values)
    return max(dict.fromkeys(seen), key=seen.count)
