"""Checkpoints of any training program: which files hold the weights, and how they are read.

Weights in safetensors files are read where they lie. Those in files of ``torch.save``
(weights-only) and of torch.distributed.checkpoint have to be converted. Opening a checkpoint reads
names, types and shapes alone. Nothing in any file is executed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from edm2lite.ema.model_tensors import clean_names
from edm2lite.ema.references import gathered
from edm2lite.interop.distributed_checkpoint import DistributedTensor, distributed_tensors
from edm2lite.interop.torch_files import is_safetensors, load_weights_only
from edm2lite.strict_json import parse_object
from edm2lite.tensorfile import read_blocks
from edm2lite.tensorheader import Header, TensorSpec, read_header, type_of

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
PARTS = ("model", "state_dict", "model_state_dict", "module", "net")
"""Keys under which programs store the weights in a file of their own."""

_INDEX = ".safetensors.index.json"
_BLOCK = 2**22  # values


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one moment, as they lie in the files of a training program.

    Attributes:
        path: File or folder of the checkpoint.
        specs: Name -> type and shape of every tensor; a type that cannot be stored has its name in
            torch.
        header: Where the tensors lie, if they can be read there; None if they must be converted.
        tensors: Name -> tensor of a checkpoint that must be converted.
        metadata: Strings stored with the weights.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "step_5.pt"
        >>> torch.save({"model": {"w": torch.ones(2)}, "step": 5}, path)
        >>> checkpoint = open_checkpoint(path)
        >>> list(checkpoint.specs), list(checkpoint.values("w"))
        (['w'], [tensor([1., 1.])])
    """

    path: Path
    specs: Mapping[str, TensorSpec]
    header: Header | None = field(default=None, repr=False)
    tensors: Mapping[str, Tensor | DistributedTensor] = field(default_factory=dict, repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def values(self, name: str) -> Iterator[Tensor]:
        """The values of a tensor in order, a part at a time.

        Args:
            name: One of :attr:`specs`.

        Raises:
            ValueError: If a file is damaged.
        """
        if self.header is not None:
            only = {name: self.header.tensors[name]}
            whole = Header(self.path, only, {}, 0, 0, self.header.sources)
            yield from (values for _, values in read_blocks(whole))
            return
        tensor = self.tensors[name]
        if isinstance(tensor, DistributedTensor):
            yield from tensor.values()
        else:
            yield from tensor.detach().reshape(-1).split(_BLOCK)


def is_checkpoint(path: Path) -> bool:
    """Whether a file or folder looks like a checkpoint; nothing in it is opened.

    Args:
        path: File or folder.

    Example:
        >>> is_checkpoint(Path("runs/none/model.safetensors"))
        False
    """
    if path.is_file():
        return path.suffix in (".safetensors", *TORCH_SUFFIXES)
    return path.is_dir() and _weights(path) is not None


def open_checkpoint(path: Path, part: str | None = None) -> Checkpoint:
    """Names, types and shapes of a checkpoint, and access to its values.

    Args:
        path: A safetensors file, a file of ``torch.save``, or a folder with one of these, with
            shards and an index as Hugging Face writes them, or of torch.distributed.checkpoint.
        part: Part that holds the weights, for files that hold more, such as ``model``. [default:
            found if there is no doubt]

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If a shard is missing, the index is wrong, or a file is damaged, or holds more
            than tensors and ``part`` does not say which count.
    """
    files = [path] if path.is_file() else _weights(path)
    if files is None:
        raise FileNotFoundError(f"{path} must hold the weights of a checkpoint, and holds none")
    if (path / ".metadata") in files:
        return _distributed(path, part)
    if all(is_safetensors(file) for file in files):
        if part is not None:
            raise ValueError(f"--part is for files that hold more than weights; {path} does not")
        header = gathered(path, files)
        metadata = read_header(files[0]).metadata if len(files) == 1 else {}
        return Checkpoint(path, header.tensors, header, metadata=metadata)
    tensors: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in _torch_tensors(file, part).items():
            if name in tensors:
                raise ValueError(f"every tensor must be in one shard of {path}, {name} is in two")
            tensors[name] = tensor
    specs = {name: _spec(t) for name, t in tensors.items()}
    return Checkpoint(path, specs, tensors=tensors)


def _weights(folder: Path) -> list[Path] | None:
    """The files of a checkpoint folder that hold its weights; None if there are none.

    Raises:
        ValueError: If there is an index, and it is wrong or a shard is missing.
    """
    for suffix in (_INDEX, ".bin.index.json"):
        indices = sorted(folder.glob(f"*{suffix}"))
        if indices:
            return _shards(_one(indices))
    if (folder / ".metadata").is_file():
        return [folder / ".metadata"]
    found = sorted(folder.glob("*.safetensors"))
    named = [path for path in found if path.stem.endswith("model")]
    if named or found:
        return [_one(named or found)]
    for name in ("pytorch_model.bin", "model.pt", "model.pth"):
        if (folder / name).is_file():
            return [folder / name]
    return None


def _one(paths: list[Path]) -> Path:
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths[:4])
        raise ValueError(
            f"a checkpoint must hold its weights in one file, or in shards with an index;"
            f" {paths[0].parent} has {names}; move all but one elsewhere"
        )
    return paths[0]


def _shards(index: Path) -> list[Path]:
    """The shards that an index names, each of which must hold what the index says."""
    try:
        places = parse_object(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{index} must be an index of shards, and cannot be read") from error
    if not isinstance(places, dict) or not places or not all(map(_is_name, places.values())):
        raise ValueError(f"{index} must name a file beside it for every tensor")
    files = [index.parent / name for name in sorted(set(places.values()))]
    for file in files:
        if not file.is_file():
            raise ValueError(
                f"all shards of {index.parent} must be there, {file.name} is missing; restore it,"
                " or move the checkpoint elsewhere"
            )
    if index.name.endswith(_INDEX):
        for file in files:
            listed = {name for name, place in places.items() if place == file.name}
            odd = sorted(listed ^ read_header(file).tensors.keys())
            if odd:
                raise ValueError(
                    f"{index} must say what is in each shard, {odd[0]} is"
                    f" {'not ' if odd[0] in listed else ''}in {file.name}; restore the checkpoint"
                    " from a copy"
                )
    return files


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and Path(value).name == value


def _distributed(path: Path, part: str | None) -> Checkpoint:
    tensors = distributed_tensors(path)
    sections = sorted({name.partition(".")[0] for name in tensors})
    if part is None and not {"optim", "optimizer", "optimizers", "ema"}.isdisjoint(sections):
        raise ValueError(_undecided(path, sections))
    if part is not None:
        prefix = f"{part}."
        tensors = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        if not tensors:
            raise ValueError(f"{path} must hold the part {part}, its parts are {_list(sections)}")
    specs = {name: TensorSpec(t.type, t.shape) for name, t in tensors.items()}
    return Checkpoint(path, specs, tensors=tensors)


def _torch_tensors(file: Path, part: str | None) -> dict[str, Tensor]:
    """The weights in a file of torch.save; they stay in the file where its format allows that."""
    with open(file, "rb") as opened:
        is_archive = opened.read(4) == b"PK\x03\x04"
    found = load_weights_only(str(file), file, in_place=is_archive)
    if part is not None:
        for key in part.split("."):
            if not isinstance(found, dict) or key not in found:
                keys = _list(sorted(map(str, found))) if isinstance(found, dict) else "none"
                raise ValueError(f"{file} must hold the part {part}, its parts are {keys}")
            found = found[key]
    elif isinstance(found, dict) and not _is_state(found):
        parts = [key for key in PARTS if _is_state(found.get(key))]
        if len(parts) != 1:
            raise ValueError(_undecided(file, sorted(map(str, found))))
        found = found[parts[0]]
    if not _is_state(found):
        raise ValueError(f"{file} must hold a state dict: names and tensors, and nothing else")
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    names = clean_names(tensors)
    if len(set(names)) < len(names):
        raise ValueError(f"{file} must hold every tensor under one name, without its wrappers")
    return dict(zip(names, tensors.values(), strict=True))


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(k, str) and type(v) in (Tensor, Parameter) for k, v in value.items())
    )


def _spec(tensor: Tensor) -> TensorSpec:
    try:
        return TensorSpec(type_of(tensor.dtype), tuple(tensor.shape))
    except ValueError:
        return TensorSpec(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def _undecided(path: Path, parts: list[str]) -> str:
    return (
        f"{path} holds more than weights; say which part the weights are with --part, one of"
        f" {_list(parts)}"
    )


def _list(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def quantization_of(checkpoint: Path) -> str | None:
    """The quantization that ``config.json`` beside the weights declares; None if it declares none.

    Args:
        checkpoint: Folder of the checkpoint.
    """
    config = checkpoint / "config.json"
    if not checkpoint.is_dir() or not config.is_file():
        return None
    try:
        found = parse_object(config.read_bytes(), finite=False).get("quantization_config")
    except ValueError as error:
        raise ValueError(f"{config} must be a JSON object, and cannot be read") from error
    if not isinstance(found, dict):
        return None
    return str(found.get("quant_method", "quantization"))
