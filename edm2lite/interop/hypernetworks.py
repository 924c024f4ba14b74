"""Hypernetworks of A1111's web UI: small networks on what a cross-attention is told.

Of each width, the file holds two networks, one for keys and one for values. They are read as data;
networks here have another way to be told something new, joined by an angle.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from edm2lite.interop.inert_pickle import shown
from edm2lite.interop.plain_records import as_mapping, plain
from edm2lite.interop.torch_dicts import read_dict
from edm2lite.interop.torch_zip import TorchFile
from edm2lite.tensorfile import all_finite

_NOTES = (
    "name", "step", "layer_structure", "activation_func", "is_layer_norm", "weight_initialization",
    "use_dropout", "activate_output", "last_layer_dropout", "sd_checkpoint", "sd_checkpoint_name",
)  # fmt: skip
_PARTS = ("keys", "values")


@dataclass(frozen=True)
class Hypernetwork:
    """The content of a file.

    Attributes:
        path: The file.
        tensors: (width, ``keys`` or ``values``) -> tensors of the network, such as
            ``linear.0.weight``.
        notes: What else the file says: name, step, layer_structure, ...
    """

    path: Path
    tensors: Mapping[tuple[int, str], Mapping[str, Tensor]]
    notes: Mapping[str, object]

    @property
    def widths(self) -> list[int]:
        """Widths of what the cross-attentions are told."""
        return sorted({width for width, _ in self.tensors})

    def refusal(self, model: str) -> str:
        """Why it cannot be used with a model, in one line.

        Args:
            model: Name of the model.
        """
        return (
            f"{self.path} cannot be used with {model}: it adds networks with biases to what a"
            f" cross-attention of width {', '.join(map(str, self.widths))} is told, for keys and"
            " values apart, which keeps no magnitude; train one here (tune.kind: hypernetwork)"
        )


def is_hypernetwork(path: Path) -> bool:
    """Whether a file of ``torch.save`` has the keys of a hypernetwork: widths.

    Args:
        path: The file.

    Raises:
        ValueError: If the file is damaged, or holds anything but tensors and plain values.
    """
    return zipfile.is_zipfile(path) and any(type(key) is int for key in read_dict(path)[1])


def read_hypernetwork(path: str | Path) -> Hypernetwork:
    """The networks in a file; nothing in it is executed.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or holds something else.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "style.pt"
        >>> net = {"linear.0.weight": torch.ones(4, 2), "linear.0.bias": torch.zeros(4)}
        >>> torch.save({2: (net, net), "step": 10}, path)
        >>> read_hypernetwork(path).widths
        [2]
    """
    path = Path(path)
    try:
        file, content = read_dict(path)
        tensors: dict[tuple[int, str], Mapping[str, Tensor]] = {}
        for width, pair in content.items():
            if not isinstance(width, int):
                continue
            if not isinstance(pair, tuple | list) or len(pair) != len(_PARTS):
                raise ValueError(f"must hold networks for keys and values of width {width}")
            for part, net in zip(_PARTS, pair, strict=True):
                tensors[width, part] = _network(file, net, f"{part} of width {width}")
        if not tensors:
            raise ValueError("must hold networks by their width, it holds none")
        notes = {key: plain(content[key], key) for key in _NOTES if key in content}
    except ValueError as error:
        text = str(error)
        raise ValueError(text if str(path) in text else f"{path} {text}") from error
    return Hypernetwork(path, tensors, notes)


def _network(file: TorchFile, value: object, what: str) -> dict[str, Tensor]:
    named = as_mapping(value, what)
    tensors = {str(name): file.tensor(v, f"{shown(name)} of {what}") for name, v in named.items()}
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            raise ValueError(f"must hold finite numbers, {shown(name)} of {what} has others")
    if not any(name.endswith(".weight") for name in tensors):
        raise ValueError(f"must hold layers as {what}, it holds none")
    return tensors
