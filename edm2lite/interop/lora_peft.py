"""The LoRA folders of peft: factors in ``adapter_model.safetensors``, scales in a JSON beside it.

Stock peft can adapt a parameter before the layer uses it (``target_parameters``), which is LoRA
inside weight normalization. It does so for weights of linear layers; files with convolutions have
the same keys, and stock peft refuses them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from edm2lite.interop.inert_pickle import shown
from edm2lite.interop.lora_names import LayerNames
from edm2lite.interop.lora_tensors import Pair, Part, changes, common, gathered
from edm2lite.network.low_rank import Factors

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
SUFFIXES: dict[str, Part] = {".lora_A.weight": "down", ".lora_B.weight": "up"}

_OFF = {  # settings under which a file is more than scaled products -> values that are off
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "use_qalora": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
    "use_bdlora": (None, False),
    "kasa_config": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
}
_OTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_PARAMETER = r"(\.weight)?"  # peft matches names of parameters or of layers, as they are given
_PATTERN = re.compile(r"(?:[\w.^$\\*+-]|\(\\?\.weight\)\?){1,300}")
_MAX_REPEATS = 2  # more of them in an expression can take very long to match


class Scales:
    """The scale of each layer, as a configuration of peft states it.

    Args:
        config: Names and values of the configuration.

    Raises:
        ValueError: If it is not one of LoRA, or of more than scaled products. The message continues
            a sentence that begins with the name of the file.

    Example:
        >>> scales = Scales({"r": 4, "lora_alpha": 8, "alpha_pattern": {"mlp.fc1": 2}})
        >>> scales.of("unet.attn.proj", 4), scales.of("unet.mlp.fc1", 4)
        (2.0, 0.5)
    """

    def __init__(self, config: Mapping[str, Any]):
        if config.get("peft_type", "LORA") not in ("LORA", None):
            raise ValueError(f"must be of LoRA, its peft_type is {shown(config['peft_type'])}")
        for name, off in _OFF.items():
            if name in config and config[name] not in off:
                raise ValueError(
                    f"must add scaled products to weights and do nothing else, its {name} is"
                    f" {shown(config[name])}; train it without"
                )
        init = config.get("init_lora_weights")
        if isinstance(init, str) and init.startswith(_OTHER_BASE):
            raise ValueError(
                f"must be for the base as it was, {shown(init)} changed the base when it began;"
                " save it with path_initial_model_for_weight_conversion"
            )
        self.rank, self.alpha = config.get("r", 8), config.get("lora_alpha", 8)
        self.rank_pattern = _pattern("rank_pattern", config)
        self.alpha_pattern = _pattern("alpha_pattern", config)
        for name, value in (("r", self.rank), ("lora_alpha", self.alpha)):
            if type(value) not in (int, float) or (name == "r" and value < 1):
                raise ValueError(f"must have a number as {name}, has {shown(value)}")
        self.rslora = bool(config.get("use_rslora"))
        self.parameters = _texts("target_parameters", config)

    def of(self, path: str, rank: int) -> float:
        """The scale of a layer.

        Args:
            path: Path of the layer in the model that was adapted.
            rank: Rank of its factors.

        Raises:
            ValueError: If the configuration states another rank.
        """
        key = f"{path}.weight" if self.is_parameter(path) else path
        stated = _matching(self.rank_pattern, key, self.rank)
        if stated != rank:
            raise ValueError(
                f"must have the ranks that its configuration states, {stated} for {shown(path)},"
                f" and has factors of rank {rank}"
            )
        alpha = _matching(self.alpha_pattern, key, self.alpha)
        return float(alpha / (math.sqrt(rank) if self.rslora else rank))

    def is_parameter(self, path: str) -> bool:
        """Whether the weight of a layer was adapted before the layer used it."""
        key = f"{path}.weight"
        return any(key == target or key.endswith(f".{target}") for target in self.parameters)


def read(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], names: LayerNames
) -> tuple[dict[str, Factors], bool]:
    """The changes in such a folder, by the names of layers.

    Args:
        tensors: Tensors of the file.
        config: The configuration beside it.
        names: Layers of the network.

    Returns:
        The changes, and whether all of them were made inside the layers (``target_parameters``).

    Raises:
        ValueError: As :class:`Scales` and :func:`edm2lite.interop.lora_tensors.gathered`.

    Example:
        >>> import torch
        >>> tensors = {
        ...     "base_model.model.proj.lora_A.weight": torch.ones(2, 3),
        ...     "base_model.model.proj.lora_B.weight": torch.ones(4, 2),
        ... }
        >>> config = {"r": 2, "lora_alpha": 1, "target_parameters": ["proj.weight"]}
        >>> read(tensors, config, LayerNames({"unet.proj": (4, 3)}, "unet"))[1]
        True
    """
    scales = Scales(config)

    def path_of(stem: str) -> str:
        if not stem.startswith(PREFIX):
            raise ValueError(f"must name layers as {PREFIX}..., it names {shown(stem)}")
        return stem.removeprefix(PREFIX)

    found = gathered(tensors, SUFFIXES, lambda stem: names.of_path(path_of(stem)))

    def scale_of(name: str, factors: Pair, rank: int) -> float:
        return scales.of(path_of(factors.key), rank)

    is_inside = all(scales.is_parameter(path_of(f.key)) for f in found.values())
    return changes(found, names, scale_of), is_inside


def pair(name: str, change: Factors) -> dict[str, Tensor]:
    """The two tensors of a layer in files of peft and of diffusers.

    Args:
        name: Name of the layer in the file.
        change: Factors of the layer.

    Example:
        >>> import torch
        >>> change = Factors(torch.ones(2, 3, 1, 1), torch.ones(4, 2), 1.0)
        >>> {key: [*value.shape] for key, value in pair("a", change).items()}
        {'a.lora_A.weight': [2, 3, 1, 1], 'a.lora_B.weight': [4, 2, 1, 1]}
    """
    up = change.up[:, :, None, None] if change.down.ndim == 4 else change.up
    return {f"{name}.lora_A.weight": change.down, f"{name}.lora_B.weight": up}


def written(adapted: Mapping[str, Factors]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and configuration of such a folder; layers by their names in the denoiser.

    Args:
        adapted: Changes by the names of layers.

    Example:
        >>> import torch
        >>> change = Factors(torch.ones(2, 3), torch.ones(4, 2), 0.5)
        >>> tensors, config = written({"unet.proj": change})
        >>> config["r"], config["lora_alpha"], config["target_parameters"]
        (2, 1.0, ['unet.proj.weight'])
    """
    tensors: dict[str, Tensor] = {}
    for name, change in adapted.items():
        tensors |= pair(f"{PREFIX}{name}", change)
    return tensors, {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "target_modules": [],
        "target_parameters": [f"{name}.weight" for name in adapted],
        **stated_scales(adapted),
    }


def stated_scales(adapted: Mapping[str, Factors]) -> dict[str, Any]:
    """Ranks and alphas of changes, as a configuration states them.

    Args:
        adapted: Changes by the paths of layers in the model that is adapted.

    Example:
        >>> import torch
        >>> stated_scales({"a.b": Factors(torch.ones(2, 3), torch.ones(4, 2))})
        {'r': 2, 'lora_alpha': 2.0, 'rank_pattern': {}, 'alpha_pattern': {}}
    """
    ranks = {path: change.rank for path, change in adapted.items()}
    alphas = {path: change.scale * change.rank for path, change in adapted.items()}
    rank, alpha = int(common(ranks.values())), common(alphas.values())
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {_expression(p): v for p, v in ranks.items() if v != rank},
        "alpha_pattern": {_expression(p): v for p, v in alphas.items() if v != alpha},
    }


def _expression(path: str) -> str:
    return f"^{re.escape(path)}{_PARAMETER}"


def _pattern(name: str, config: Mapping[str, Any]) -> dict[str, float]:
    """Numbers by expressions for the names of layers; the file decides them, so they are simple."""
    found = config.get(name) or {}
    if not isinstance(found, dict) or not all(type(v) in (int, float) for v in found.values()):
        raise ValueError(f"must have numbers by the names of layers as {name}")
    for pattern in found:
        repeats = pattern.count("*") + pattern.count("+")
        if not _PATTERN.fullmatch(pattern) or repeats > _MAX_REPEATS:
            raise ValueError(
                f"must name layers in {name}, by expressions of letters, dots and at most"
                f" {_MAX_REPEATS} repetitions, it has {shown(pattern)}"
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"must name layers in {name}, has {shown(pattern)}") from error
    return found


def _matching(patterns: Mapping[str, float], key: str, default: float) -> float:
    """The number of the first expression that matches the end of a key, as peft matches them."""
    fits = (n for p, n in patterns.items() if re.match(rf"(.*\.)?({p})$", key))
    return next(fits, default)


def _texts(name: str, config: Mapping[str, Any]) -> Sequence[str]:
    found = config.get(name) or []
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ValueError(f"must have a list of names as {name}")
    return found
