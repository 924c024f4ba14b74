"""LoRA files of other tools: kohya's sd-scripts, peft and diffusers, read and written.

| tool      | what it is                                       | how a layer is called             |
|-----------|--------------------------------------------------|-----------------------------------|
| kohya     | a file                                           | ``lora_unet_`` + path, ``_`` = .  |
| peft      | a folder with ``adapter_model.safetensors``      | ``base_model.model.`` + path      |
| diffusers | a file, ``pytorch_lora_weights.safetensors``     | ``unet.``/``transformer.`` + path |

A change of a magnitude-preserving layer is added to its weight before that is normalized, or to
what the normalized weight is: these are different layers. Files that are written here say which by
``edm2lite.lora`` in their metadata; peft says so by ``target_parameters``; other files do not.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from edm2lite.atomic import replacing, replacing_folder
from edm2lite.interop import lora_diffusers, lora_kohya, lora_peft
from edm2lite.interop.inert_pickle import shown
from edm2lite.interop.lora_names import LayerNames
from edm2lite.interop.lora_tensors import gathered
from edm2lite.interop.torch_dicts import read_dict
from edm2lite.interop.torch_zip import read_torch, state_dict
from edm2lite.network.low_rank import Factors
from edm2lite.strict_json import parse_object
from edm2lite.tensorfile import load_tensors, read_header, save_tensors

Tool = Literal["kohya", "peft", "diffusers"]
Place = Literal["inside-wn", "outside-wn"]

MARK = "edm2lite.lora"
"""Key of the metadata: where changes are added, before or after weight normalization."""

_MARKS = (".lora_", ".lora.", ".dora_scale", ".hada_", ".lokr_")


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file of another tool.

    Attributes:
        path: The file or folder.
        tool: Tool whose keys it has.
        changes: Change of each layer, by the name of the layer in the denoiser.
        place: Where changes are added to magnitude-preserving layers, as far as the file says.
        metadata: Metadata of the file.
    """

    path: Path
    tool: Tool
    changes: Mapping[str, Factors]
    place: Place | None
    metadata: Mapping[str, str]


def read_lora(source: str | Path, names: LayerNames) -> LoraFile:
    """The changes of weights in a LoRA file of another tool; nothing in it is executed.

    Args:
        source: A file of kohya or diffusers, safetensors or of ``torch.save``; a folder of peft or
            diffusers, or the weights in one.
        names: Layers of the network that is adapted.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or of another kind; names layers that the network lacks,
            or ambiguously; has factors that do not fit; values that are not finite; or magnitudes
            of DoRA.

    Example:
        >>> import tempfile, torch
        >>> names = LayerNames({"unet.enc.conv": (4, 3)}, "unet")
        >>> changes = {"unet.enc.conv": Factors(torch.ones(2, 3), torch.ones(4, 2), 0.5)}
        >>> folder = Path(tempfile.mkdtemp())
        >>> path = write_lora(folder / "a.safetensors", "kohya", changes, names)
        >>> file = read_lora(path, names)
        >>> file.tool, file.place, file.changes["unet.enc.conv"].scale
        ('kohya', 'inside-wn', 0.5)
    """
    path = _weights(Path(source))
    try:
        tensors, metadata = _content(path)
        return _read(path, tensors, metadata, names)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if str(path) in text else f"{path} {text}") from error


def is_lora(source: str | Path) -> bool:
    """Whether a file or folder has keys of LoRA.

    Args:
        source: The file or folder.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged.
    """
    path = _weights(Path(source))
    if zipfile.is_zipfile(path):
        return _has_marks(map(str, read_dict(path)[1]))
    return _has_marks(read_header(path).tensors)


def _has_marks(keys: Iterable[str]) -> bool:
    return any(mark in key for key in keys for mark in _MARKS)


def outline(source: str | Path) -> tuple[Tool, dict[str, int], Place | None]:
    """The tool of a LoRA file, the rank of each layer as the file calls it, and its place.

    Args:
        source: The file or folder.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or of another kind.

    Example:
        >>> import tempfile, torch
        >>> names = LayerNames({"unet.enc.conv": (4, 3)}, "unet")
        >>> changes = {"unet.enc.conv": Factors(torch.ones(2, 3), torch.ones(4, 2))}
        >>> path = write_lora(Path(tempfile.mkdtemp()) / "a", "diffusers", changes, names)
        >>> outline(path)
        ('diffusers', {'unet.enc.conv': 2}, 'inside-wn')
    """
    path = _weights(Path(source))
    try:
        tensors, metadata = _content(path)
        suffixes = {**lora_kohya.SUFFIXES, **lora_diffusers.SUFFIXES}
        found = gathered(tensors, suffixes, str)
        ranks = {key: len(p.down) for key, p in found.items() if p.down is not None and p.down.ndim}
        return _tool(tensors), ranks, _place(metadata)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if str(path) in text else f"{path} {text}") from error


def write_lora(
    out: str | Path,
    tool: Tool,
    changes: Mapping[str, Factors],
    names: LayerNames,
    *,
    place: Place = "inside-wn",
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write changes of weights with the keys of another tool; the file is whole or absent.

    Args:
        out: The file; for peft, a folder, which must not exist.
        tool: Tool whose keys it gets.
        changes: Change of each layer, by the name of the layer in the denoiser.
        names: Layers of the network.
        place: Where changes are added to magnitude-preserving layers; recorded in the metadata.
        metadata: Further strings for the metadata.

    Returns:
        ``out``.

    Raises:
        ValueError: If the folder exists, or names of layers would be ambiguous.

    Example:
        >>> import tempfile, torch
        >>> names = LayerNames({"unet.enc.conv": (4, 3)}, "unet")
        >>> changes = {"unet.enc.conv": Factors(torch.ones(2, 3), torch.ones(4, 2), 0.5)}
        >>> folder = write_lora(Path(tempfile.mkdtemp()) / "a", "peft", changes, names)
        >>> sorted(path.name for path in folder.iterdir())
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    out, stated = Path(out), {MARK: place, **(metadata or {})}
    if tool == "peft":
        tensors, config = lora_peft.written(changes)
        return _write_folder(out, tensors, stated, config)
    if out.is_dir():
        raise ValueError(f"{out} must be the name of a file, it is a folder; give another one")
    written = lora_kohya.written if tool == "kohya" else lora_diffusers.written
    tensors, more = written(changes, names)
    return save_tensors(out, tensors, {"format": "pt", **more, **stated})


def _weights(source: Path) -> Path:
    """The file with the weights."""
    if not source.is_dir():
        if not source.is_file():
            raise FileNotFoundError(f"there is no file {source}")
        return source
    known = (lora_peft.WEIGHTS, lora_diffusers.WEIGHTS)
    found = [source / name for name in known if (source / name).is_file()]
    if len(found) != 1:
        raise FileNotFoundError(
            f"{source} must hold {known[0]} (peft) or {known[1]} (diffusers), it has"
            f" {'both' if found else 'neither'}; give the file"
        )
    return found[0]


def _content(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if zipfile.is_zipfile(path):
        return state_dict(read_torch(path)), {}
    return load_tensors(path)


def _read(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], names: LayerNames
) -> LoraFile:
    place, tool = _place(metadata), _tool(tensors)
    if tool == "peft":
        changes, is_inside = lora_peft.read(tensors, _config(path), names)
        if is_inside and place is None:
            place = "inside-wn"
        return LoraFile(path, "peft", changes, place, metadata)
    if tool == "kohya":
        return LoraFile(path, "kohya", lora_kohya.read(tensors, names), place, metadata)
    changes = lora_diffusers.read(tensors, metadata, names)
    return LoraFile(path, "diffusers", changes, place, metadata)


def _tool(keys: Mapping[str, Tensor]) -> Tool:
    if any(key.startswith(lora_peft.PREFIX) for key in keys):
        return "peft"
    return "kohya" if lora_kohya.is_kohya(keys) else "diffusers"


def _place(metadata: Mapping[str, str]) -> Place | None:
    place = metadata.get(MARK)
    if place in ("inside-wn", "outside-wn"):
        return place  # type: ignore[return-value]  # one of the two
    if place is not None:
        raise ValueError(f"must say inside-wn or outside-wn as {MARK}, it says {shown(place)}")
    return None


def _config(path: Path) -> dict[str, Any]:
    beside = path.parent / lora_peft.CONFIG
    if not beside.is_file():
        raise ValueError(
            f"must have {lora_peft.CONFIG} beside it, which states the scales, and has not; copy it"
            " there"
        )
    try:
        return parse_object(beside.read_bytes())
    except ValueError as error:
        raise ValueError(f"{beside} must be JSON, but {error}; copy it again") from error


def _write_folder(
    out: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], config: Mapping[str, Any]
) -> Path:
    if out.exists():
        raise ValueError(f"{out} must not exist, a folder of peft is written whole; give another")
    with replacing_folder(out) as folder:
        save_tensors(folder / lora_peft.WEIGHTS, tensors, {"format": "pt", **metadata})
        with replacing(folder / lora_peft.CONFIG) as file:
            json.dump(dict(config), file, indent=1)
    return out
