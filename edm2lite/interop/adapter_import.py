"""Adapters from files of other tools; nothing in the files is executed."""

from __future__ import annotations

import zipfile
from pathlib import Path

from torch import Tensor, nn

from edm2lite.interop.hypernetworks import is_hypernetwork, read_hypernetwork
from edm2lite.interop.lora_files import Place, is_lora, read_lora
from edm2lite.interop.lora_names import LayerNames
from edm2lite.interop.textual_inversion import read_learned_tokens
from edm2lite.models.adapters import Adapter, is_adapter
from edm2lite.models.loading import load_adapter, with_adapters
from edm2lite.models.model import Model
from edm2lite.network.layers import MPConv

BASE = "edm2lite.base"
"""Key of the metadata: identity of the model that the changes are for."""


def layer_names(model: Model) -> LayerNames:
    """The layers of a model, as files of other tools name them.

    Args:
        model: The model.
    """
    return LayerNames.of(model.net, model.net.config.backbone.tensor_prefix)


def normalized_layers(net: nn.Module) -> dict[str, MPConv]:
    """Name -> layer of all layers that normalize their weights.

    Example:
        >>> list(normalized_layers(nn.Sequential(nn.Linear(4, 8), MPConv(8, 4))))
        ['1']
    """
    return {name: m for name, m in net.named_modules() if isinstance(m, MPConv)}


def import_adapter(source: str | Path, base: Model, *, place: Place | None = None) -> Adapter:
    """An adapter from a file of another tool; see :func:`import_lora`.

    Args:
        source: The file or folder.
        base: The model that it was made for.
        place: Place where a LoRA file adds its changes, if it does not say so itself.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: As :func:`import_lora`, or if the file is a hypernetwork, which cannot be used
            with networks here, or a word for another text encoder.
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if path.is_dir() or is_lora(path):
        return import_lora(path, base, place=place)
    if zipfile.is_zipfile(path) and is_hypernetwork(path):
        raise ValueError(read_hypernetwork(path).refusal(base.name))
    return read_learned_tokens(path).adapter(base)


def num_fitting_layers(source: str | Path, base: Model) -> int:
    """Number of layers of a model that an adapter changes, once it is known to fit.

    Args:
        source: An adapter of ours, or a LoRA file of another tool.
        base: The model.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it does not fit, or is of another method.
    """
    if is_adapter(source):
        adapter = load_adapter(source)
        with_adapters(base, [adapter])
        return len(adapter.deltas())
    if Path(source).is_dir() or is_lora(source):
        return len(read_lora(source, layer_names(base)).changes)
    return len(import_adapter(source, base).ranks)  # 0 for a word; hypernetworks are refused


def import_lora(source: str | Path, base: Model, *, place: Place | None = None) -> Adapter:
    """An adapter from a LoRA file of kohya, peft or diffusers; nothing in the file is executed.

    Args:
        source: The file or folder, see :func:`edm2lite.interop.lora_files.read_lora`.
        base: The model that the file was made for.
        place: Place where the file adds its changes, if it does not say so itself.

    Returns:
        The adapter, whose factors are float32.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, does not fit the model or was made for another one, or
            adds changes to magnitude-preserving layers outside of weight normalization.
    """
    file = read_lora(source, layer_names(base))
    if file.place is not None and place not in (None, file.place):
        raise ValueError(
            f"{source} must be imported as it says, its changes are added {file.place}, got"
            f" {place}; leave that out"
        )
    made_for = file.metadata.get(BASE, base.identity)
    if made_for != base.identity:
        raise ValueError(
            f"{source} must be used with the model that it was made for ({made_for}), got"
            f" {base.name} ({base.identity})"
        )
    found, normalized = file.place or place, normalized_layers(base.net)
    inside = [name for name in file.changes if name in normalized]
    if inside and found != "inside-wn":
        why = "outside of it" if found else "where, it does not say"
        raise ValueError(
            f"{source} must add its changes inside weight normalization, as {inside[0]} of"
            f" {base.name} needs them, and adds them {why}; say inside-wn only if it was trained so"
        )
    tensors: dict[str, Tensor] = {}
    for name, change in file.changes.items():
        tensors |= {f"{name}.down": change.down, f"{name}.up": change.up}
    return Adapter(
        str(source), "lora", tensors, base=base.name, base_identity=base.identity,
        scales={name: change.scale for name, change in file.changes.items()},
        metadata={"tool": file.tool},
    )  # fmt: skip
