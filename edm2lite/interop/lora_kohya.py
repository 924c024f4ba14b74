"""The LoRA files of kohya's sd-scripts: keys with ``_`` for ``.``, a scale beside each layer."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from edm2lite.interop.inert_pickle import shown
from edm2lite.interop.lora_names import LayerNames
from edm2lite.interop.lora_tensors import Part, alpha_scale, changes, common, gathered
from edm2lite.network.low_rank import Factors

PREFIXES = ("lora_unet_", "lora_transformer_")
"""What keys begin with; the first is written, for networks of any kind."""

SUFFIXES: dict[str, Part] = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".alpha": "alpha",
}


def is_kohya(keys: Mapping[str, Tensor]) -> bool:
    """Whether these are the keys of such a file.

    Example:
        >>> is_kohya({"lora_unet_x.lora_down.weight": torch.ones(1)})
        True
    """
    return any(".lora_down." in key or key.startswith((*PREFIXES, "lora_te")) for key in keys)


def read(tensors: Mapping[str, Tensor], names: LayerNames) -> dict[str, Factors]:
    """The changes in such a file, by the names of layers.

    Args:
        tensors: Tensors of the file.
        names: Layers of the network.

    Raises:
        ValueError: As :func:`edm2lite.interop.lora_tensors.gathered`.

    Example:
        >>> tensors = {
        ...     "lora_unet_enc_a_b.lora_down.weight": torch.ones(2, 3),
        ...     "lora_unet_enc_a_b.lora_up.weight": torch.ones(4, 2),
        ...     "lora_unet_enc_a_b.alpha": torch.tensor(1.0),
        ... }
        >>> found = read(tensors, LayerNames({"unet.enc.a_b": (4, 3)}, "unet"))
        >>> {name: change.scale for name, change in found.items()}
        {'unet.enc.a_b': 0.5}
    """

    def name_of(stem: str) -> str:
        prefix = next((p for p in PREFIXES if stem.startswith(p)), None)
        if prefix is None:
            raise ValueError(f"must name layers as {PREFIXES[0]}..., it names {shown(stem)}")
        return names.of_flat(stem.removeprefix(prefix))

    found = gathered(tensors, SUFFIXES, name_of)
    return changes(found, names, lambda name, factors, rank: alpha_scale(factors, rank))


def written(
    adapted: Mapping[str, Factors], names: LayerNames
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of such a file.

    Args:
        adapted: Changes by the names of layers.
        names: Layers of the network.

    Raises:
        ValueError: If two layers would have one name.

    Example:
        >>> change = Factors(torch.ones(2, 3), torch.ones(4, 2), 0.5)
        >>> tensors, metadata = written({"unet.a.b": change}, LayerNames({"unet.a.b": (4, 3)}, "u"))
        >>> list(tensors)[-1], metadata["ss_network_dim"]
        ('lora_unet_unet_a_b.alpha', '2')
    """
    tensors: dict[str, Tensor] = {}
    for name, change in adapted.items():
        stem = f"{PREFIXES[0]}{names.flat(name)}"
        up = change.up
        tensors[f"{stem}.lora_down.weight"] = change.down
        tensors[f"{stem}.lora_up.weight"] = up[:, :, None, None] if change.down.ndim == 4 else up
        tensors[f"{stem}.alpha"] = torch.tensor(change.scale * change.rank)
    linear = [c for c in adapted.values() if c.down.ndim == 2] or list(adapted.values())
    convs = [c for c in adapted.values() if c.down.ndim == 4]
    arguments = {}
    if convs:
        dim = int(common(c.rank for c in convs))
        arguments = {"conv_dim": dim, "conv_alpha": common(c.scale * c.rank for c in convs)}
    return tensors, {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(int(common(c.rank for c in linear))),
        "ss_network_alpha": str(common(c.scale * c.rank for c in linear)),
        "ss_network_args": json.dumps(arguments),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "edm2lite/lora",
    }
