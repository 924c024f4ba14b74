"""Reads a network pickle of the official EDM2 code: configuration, weights, encoder.

Its tensors have the same names as in the state dict here. All of them are checked against the
network that the file describes before anything is returned.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import Tensor

from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.ema.stream import Progress
from edm2lite.interop.edm2_config import configuration
from edm2lite.interop.edm2_encoder import encoder_of
from edm2lite.interop.inert_pickle import read_pickle, shown
from edm2lite.interop.plain_records import as_mapping, plain
from edm2lite.interop.torch_records import NAMES, Instance, as_instance, modules, tensor
from edm2lite.network.unet import UNetConfig
from edm2lite.tensorfile import all_finite

_BLOCK = 4 * 2**20
_CLASSES = ("UNet", "Block", "MPConv", "MPFourier", "ModuleDict")


@dataclass(frozen=True)
class Network:
    """The contents of a network pickle.

    Attributes:
        tensors: State dict of the network, in the types in which its tensors are stored.
        description: Metadata for a model file: ``model``, ``encoder``, and that EDM2 trains
            without label dropout.
        digest: The xxh3-128 of the file.
    """

    tensors: dict[str, Tensor] = field(repr=False)
    description: dict[str, str] = field(repr=False)
    digest: str


def read_network(path: str | Path, progress: Progress | None = None) -> Network:
    """Read a raw snapshot or a post-hoc reconstruction; nothing in the file is executed.

    Args:
        path: The pickle.
        progress: Called with the bytes read and the total after each block.

    Raises:
        FileNotFoundError: If ``path`` does not exist.
        ValueError: If the pickle is damaged, asks for anything that a network does not need, or
            holds a network that is not supported here.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; give a network pickle of EDM2")
    data = np.empty(path.stat().st_size, np.uint8).data
    state, done = xxhash.xxh3_128(), 0
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(data[done : done + _BLOCK]):
            state.update(data[done : done + count])  # while it is in the cache
            done += count
            if progress is not None:
                progress(done, len(data))
    try:
        value, end = read_pickle(data[:done], NAMES)
        if end != done:
            raise ValueError(f"is damaged: {done - end} bytes follow after its end")
        outer = as_mapping(value, "its content")
        tensors, description = _network(outer, done)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    return Network(tensors, description, state.hexdigest())


def _network(
    outer: Mapping[str | int, object], num_bytes: int
) -> tuple[dict[str, Tensor], dict[str, str]]:
    parts = dict(modules(outer.get("ema"), "ema"))
    for prefix, part in parts.items():
        if part.class_name not in (_CLASSES if prefix else ("Precond",)):
            raise ValueError(
                f"must hold a network of EDM2 as ema, {shown(prefix.rstrip('.') or 'ema')} is of"
                f" class {shown(part.class_name)}"
            )
    records = _tensor_records(parts)
    config = configuration(parts, len(records))
    expected = _shapes(config)
    missing, unknown = sorted(expected.keys() - records), sorted(records.keys() - expected)
    if missing or unknown:
        raise ValueError(
            "must hold the tensors of the network that it describes; missing"
            f" {', '.join(missing[:3]) or 'none'}, unknown"
            f" {', '.join(map(shown, unknown[:3])) or 'none'}"
        )
    count = sum(shape.numel() for shape in expected.values())
    if 2 * count > num_bytes:  # half precision: tensors that share memory would multiply it
        raise ValueError(f"describes {count} weights, more than its {num_bytes} bytes can hold")
    assert isinstance(config.backbone, UNetConfig)
    _check_heads(parts, expected, config.backbone.head_channels)
    encoder = encoder_of(as_instance(outer.get("encoder"), "encoder"), config.backbone.img_channels)
    tensors = {name: _weight(records[name], name, shape) for name, shape in expected.items()}
    description = {"model": config.to_json(), "encoder": encoder.to_json(), "label_dropout": "0.0"}
    return tensors, description


@functools.lru_cache(maxsize=4)  # the files of a run are all of one network
def _shapes(config: PrecondConfig) -> Mapping[str, torch.Size]:
    """Name -> shape of all tensors of a network."""
    with torch.device("meta"):
        return {name: t.shape for name, t in Precond(config).state_dict().items()}


def _tensor_records(parts: Mapping[str, Instance]) -> dict[str, object]:
    """Name -> pickled tensor, without the resampling filters, which must be 2x2 boxes."""
    records: dict[str, object] = {}
    for prefix, part in parts.items():
        for kind in ("_parameters", "_buffers"):
            entries = as_mapping(part.attributes.get(kind), f"{kind} of {prefix or 'ema'}")
            for name, record in entries.items():
                if name == "resample_filter":
                    values = tensor(record, f"{prefix}{name}").flatten().tolist()
                    if values not in ([0.25] * 4, [0.5] * 2, [1.0] * 2):
                        raise ValueError(f"must resample by 2x2 boxes, {prefix}{name} does not")
                elif record is not None:
                    records[f"{prefix}{shown(name)}"] = record
    return records


def _check_heads(
    parts: Mapping[str, Instance], expected: Mapping[str, torch.Size], head_channels: int
) -> None:
    """Raise ValueError if a block has another number of heads, which no shape would reveal."""
    for prefix, part in parts.items():
        projection = expected.get(f"{prefix}attn_proj.weight")
        heads = projection[0] // head_channels if projection else 0
        found = plain(part.attributes.get("num_heads", heads), f"num_heads of {prefix}")
        if found != heads:
            raise ValueError(
                f"must have heads of {head_channels} channels, {prefix.rstrip('.')} has"
                f" {shown(found)} of them in place of {heads}"
            )


def _weight(record: object, name: str, shape: torch.Size) -> Tensor:
    value = tensor(record, name)
    if value.ndim == 0 and shape == (1,):  # gains are scalars in EDM2
        value = value.reshape(1)
    if value.shape != shape:
        raise ValueError(
            f"must hold {name} of shape {list(shape)} by its own description, has"
            f" {list(value.shape)}"
        )
    if not all_finite(value):
        raise ValueError(f"must hold finite weights, {name} does not")
    return value
