"""What a file of an adapter holds, in words: ours, and those of other tools."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from edm2lite.interop.hypernetworks import is_hypernetwork, read_hypernetwork
from edm2lite.interop.lora_files import is_lora, outline
from edm2lite.interop.textual_inversion import read_learned_tokens
from edm2lite.models.adapters import Adapter, is_adapter
from edm2lite.models.loading import load_adapter
from edm2lite.units import format_bytes


def describe(source: str | Path) -> dict[str, str]:
    """Names and values that describe an adapter; no model is needed.

    Args:
        source: A file of ours, the folder of a run; a LoRA file, a file of textual inversion, or a
            hypernetwork of other tools.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or is none of them.

    Example:
        >>> import tempfile, torch
        >>> from edm2lite.models.adapters import save_adapter
        >>> factors = {"unet.a.down": torch.ones(2, 8), "unet.a.up": torch.ones(4, 2)}
        >>> adapter = Adapter("a", "lora", factors)
        >>> path = save_adapter(f"{tempfile.mkdtemp()}/a.safetensors", adapter)
        >>> told = describe(path)
        >>> told["kind"], told["layers"], told["rank"], told["values"]
        ('lora', '1', '2', '24')
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if is_adapter(path):
        return _ours(load_adapter(path))
    if path.is_dir() or is_lora(path):
        tool, ranks, place = outline(path)
        told = {"kind": f"lora ({tool})", "layers": str(len(ranks)), "rank": _range(ranks.values())}
        return {**told, "adds": place or "not stated: inside or outside of weight normalization"}
    if is_hypernetwork(path):
        return _hypernetwork(path)
    tokens = read_learned_tokens(path)
    vectors = {name: f"{len(v)} x {v.shape[1]}" for name, v in tokens.vectors.items()}
    return {"kind": "textual inversion", **tokens.notes, **vectors}


def _ours(adapter: Adapter) -> dict[str, str]:
    deltas, ranks = adapter.deltas(), adapter.ranks
    dense = len(deltas) - len(ranks)
    values = sum(value.numel() for value in adapter.tensors.values())
    size = sum(value.numel() * value.element_size() for value in adapter.tensors.values())
    told = {
        "kind": adapter.kind,
        "base": f"{adapter.base or 'unknown'} ({adapter.base_identity or 'any'})",
        "layers": str(len(deltas)),
        "rank": _range(ranks.values()) if ranks else "",
        "whole": f"{dense} layers, without factors" if dense else "",
        "fields": ", ".join(f"{k}={v}" for k, v in adapter.backbone.items()),
        "tensors": ", ".join(adapter.own_tensors),
        "word": _word(adapter),
        "values": str(values),
        "size": format_bytes(size),
        **_where(adapter.metadata),
    }
    return {key: value for key, value in told.items() if value}


def _word(adapter: Adapter) -> str:
    if adapter.word is None:
        return ""
    word, vectors = adapter.word
    return f"{word}, {len(vectors)} x {vectors.shape[1]}"


def _where(metadata: Mapping[str, str]) -> dict[str, str]:
    return {key: metadata.get(key, "") for key in ("tool", "run", "nimg", "sigma_rel")}


def _hypernetwork(path: Path) -> dict[str, str]:
    found = read_hypernetwork(path)
    widths = ", ".join(map(str, found.widths))
    notes = {key: str(value) for key, value in found.notes.items()}
    return {"kind": "hypernetwork of the web UI", "widths": widths, **notes}


def _range(numbers: Iterable[int]) -> str:
    low, high = min(numbers := list(numbers)), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
