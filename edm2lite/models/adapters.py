"""Adapters: what fine-tuning adds to a model, in a small file of its own.

A low-rank adapter is added to stored weights, before normalization
(:mod:`edm2lite.network.adapters`); a learned class or a hypernetwork brings tensors of its own, and
the fields of the network's configuration that make room for them. Adapters are merged when a model
is loaded (:mod:`edm2lite.models.merging`), so sampling costs what it costs without.

The file is safetensors. Of a layer it holds the factors, ``LAYER.down`` and ``LAYER.up``, or the
whole of what is added, ``LAYER.delta``, as averages do; every other tensor belongs to the network.
The metadata ``adapter`` is JSON: the kind, the model that it was trained on (``base``, its name,
and ``base_identity``, a hash of where its weights come from), ``scales`` of the layers,
``backbone``, the fields that it sets, and ``text``, the word that the text encoder learns, whose
vectors are the tensor ``word.vectors`` times ``scale``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash
from torch import Tensor

from edm2lite.messages import one_line
from edm2lite.network.low_rank import Factors, factorize
from edm2lite.strict_json import parse_object
from edm2lite.tensorfile import (
    ADAPTER_FORMAT,
    all_finite,
    as_bytes,
    load_tensors,
    read_header,
    save_tensors,
)
from edm2lite.text.words import check_word

VECTORS = "word.vectors"
"""Tensor of an adapter that teaches a word: [n, D] vectors over the scale of it."""


@dataclass(frozen=True)
class Adapter:
    """What fine-tuning adds to a model.

    Attributes:
        name: Name for messages: its file.
        kind: How it was made: ``lora``, ``embedding``, ``textual_inversion``, ``hypernetwork`` or
            ``controlnet``.
        tensors: ``LAYER.down`` and ``LAYER.up``, or ``LAYER.delta``, and tensors of the network.
        base: Name of the model that it was trained on, as :func:`edm2lite.load` takes it.
        base_identity: :attr:`edm2lite.models.Model.identity` of that model; empty if unknown, as
            in files of other tools.
        scales: Layer -> scale s of its factors; 1 for layers that are not listed.
        backbone: Fields of the network's configuration that it sets.
        text: ``word`` and ``scale`` of a learned word, see :attr:`word`.
        metadata: Further metadata of its file: run, nimg, sigma_rel, ...

    Raises:
        ValueError: If factors do not fit each other, or a value is not finite.

    Example:
        >>> import torch
        >>> tensors = {"0.down": torch.ones(2, 8), "0.up": torch.ones(4, 2)}
        >>> adapter = Adapter("a", "lora", tensors, scales={"0": 0.5})
        >>> adapter.ranks, adapter.deltas()["0"][0, 0]
        ({'0': 2}, tensor(1.))
    """

    name: str
    kind: str
    tensors: Mapping[str, Tensor] = field(repr=False)
    base: str = ""
    base_identity: str = ""
    scales: Mapping[str, float] = field(default_factory=dict, repr=False)
    backbone: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name, value in self.tensors.items():
            if not value.is_floating_point() or not all_finite(value):
                raise ValueError(
                    f"{self.name} must hold finite numbers, {name} does not; use another file"
                )
        for layer, factors in self.factors().items():
            if not math.isfinite(factors.scale):
                raise ValueError(f"{self.name} must have finite scales, {layer} does not")
            down, up = [*factors.down.shape], [*factors.up.shape]
            if len(down) < 2 or len(up) < 2 or up[1] != down[0] or any(n != 1 for n in up[2:]):
                raise ValueError(
                    f"{self.name} must have factors of one rank for each layer, {layer} has"
                    f" {down} and {up}"
                )

        if self.tensors and (self.text or VECTORS in self.tensors):
            self._check_word()

    def _check_word(self) -> None:
        word, scale = str(self.text.get("word", "")), self.text.get("scale")
        check_word(word)
        shape = [*self.tensors[VECTORS].shape] if VECTORS in self.tensors else None
        if type(scale) is not float or not 0 < scale < math.inf or len(shape or ()) != 2:
            raise ValueError(
                f"{self.name} must have vectors [n, length] of {word} and a scale above 0, got"
                f" {shape} and {scale!r}"
            )

    @property
    def word(self) -> tuple[str, Tensor] | None:
        """The learned word and its vectors [n, D] at the input of the text encoder, if any."""
        if not self.text:
            return None
        return self.text["word"], self.tensors[VECTORS].float() * self.text["scale"]

    def factors(self) -> dict[str, Factors]:
        """Layer -> its factors, of those that have factors.

        Raises:
            ValueError: If one of the two factors is missing.
        """
        layers = [n.rpartition(".")[0] for n in self.tensors if n.endswith((".down", ".up"))]
        found = {}
        for layer in dict.fromkeys(layers):
            down, up = (self.tensors.get(f"{layer}.{part}") for part in ("down", "up"))
            if down is None or up is None:
                raise ValueError(f"{self.name} must have both factors of {layer}, it has one")
            found[layer] = Factors(down, up, self.scales.get(layer, 1.0))
        return found

    def deltas(self) -> dict[str, Tensor]:
        """Layer -> what is added to its stored weight, float32."""
        dense = {
            name.removesuffix(".delta"): value.float()
            for name, value in self.tensors.items()
            if name.endswith(".delta")
        }
        return {**{layer: f.delta() for layer, f in self.factors().items()}, **dense}

    @property
    def own_tensors(self) -> dict[str, Tensor]:
        """The tensors that the network has because of the adapter."""
        ends = (".down", ".up", ".delta")
        own = {name: value for name, value in self.tensors.items() if not name.endswith(ends)}
        return {name: value for name, value in own.items() if name != VECTORS}

    @property
    def ranks(self) -> dict[str, int]:
        """Layer -> rank of its factors."""
        return {layer: len(factors.down) for layer, factors in self.factors().items()}

    @property
    def digest(self) -> str:
        """xxh3-128 of the tensors, as the file states it or else computed."""
        if "digest" in self.metadata:
            return self.metadata["digest"]
        state = xxhash.xxh3_128()
        for value in self.tensors.values():
            state.update(as_bytes(value.detach().cpu().contiguous()))
        return state.hexdigest()

    def check_base(self, identity: str, name: str) -> None:
        """Raise ValueError if the adapter was trained on another model.

        Args:
            identity: Identity of the model that is to be adapted.
            name: Name of that model in messages.
        """
        if self.base_identity not in ("", identity):
            raise ValueError(
                f"{self.name} must be used with the model that it was trained on, {self.base}"
                f" ({self.base_identity}), got {name} ({identity})"
            )

    def to_metadata(self) -> dict[str, str]:
        """Metadata of its file."""
        named = {key: getattr(self, key) for key in ("kind", "base", "base_identity")}
        parts = {key: dict(getattr(self, key)) for key in ("scales", "backbone", "text")}
        described = {**named, **{key: value for key, value in parts.items() if value}}
        text = json.dumps(described, separators=(",", ":"))
        return {**self.metadata, "format": ADAPTER_FORMAT, "adapter": text}


def save_adapter(path: str | Path, adapter: Adapter) -> Path:
    """Write an adapter to a file, atomically.

    Example:
        >>> import tempfile, torch
        >>> tensors = {"unet.emb_noise.delta": torch.ones(4, 8)}
        >>> path = f"{tempfile.mkdtemp()}/a.safetensors"
        >>> read_adapter(save_adapter(path, Adapter("a", "lora", tensors))).kind
        'lora'
    """
    return save_tensors(Path(path), adapter.tensors, adapter.to_metadata())


def factorized(adapter: Adapter, rank: int) -> tuple[Adapter, float]:
    """An adapter with the best factors of a rank for what it adds to each layer, and their error.

    What an average adds has no low rank, although each product in it has.

    Args:
        adapter: The adapter.
        rank: Largest rank of a layer.

    Returns:
        The adapter, and the L2 norm of what it lacks over that of what was there, over all layers.

    Example:
        >>> import torch
        >>> whole = Adapter("a", "lora", {"0.delta": torch.diag(torch.tensor([4.0, 3.0]))})
        >>> thin, error = factorized(whole, rank=1)
        >>> thin.ranks, round(error, 4)
        ({'0': 1}, 0.6)
    """
    tensors, lost, there = dict(adapter.own_tensors), 0.0, 0.0
    for layer, delta in adapter.deltas().items():
        found, size = factorize(delta, rank=rank), delta.double().square().sum().item()
        down, up = found.change.down.contiguous(), found.change.up.contiguous()
        tensors |= {f"{layer}.down": down, f"{layer}.up": up}
        lost, there = lost + found.error**2 * size, there + size
    error = math.sqrt(lost / there) if there else 0.0
    rest_of = {k: v for k, v in adapter.metadata.items() if k not in ("digest", "header_digest")}
    metadata = {**rest_of, "rank_error": repr(error)}
    return dataclasses.replace(adapter, tensors=tensors, scales={}, metadata=metadata), error


def read_adapter(path: str | Path) -> Adapter:
    """The adapter in a file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, is not an adapter, or holds a value that is not finite.

    Example:
        >>> read_adapter("nowhere.safetensors")
        Traceback (most recent call last):
        FileNotFoundError: no adapter at nowhere.safetensors; give the file of an adapter, or a run
    """
    file = Path(path)
    file = file / "last.safetensors" if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(f"no adapter at {file}; give the file of an adapter, or a run")
    return adapter_of(*load_tensors(file), str(path))


def is_adapter(path: str | Path) -> bool:
    """Whether a file is an adapter of ours, or a folder the run of one.

    Example:
        >>> import tempfile, torch
        >>> adapter = Adapter("a", "lora", {"unet.emb_noise.delta": torch.ones(4, 8)})
        >>> is_adapter(save_adapter(f"{tempfile.mkdtemp()}/a.safetensors", adapter))
        True
    """
    file = Path(path)
    file = file / "last.safetensors" if file.is_dir() else file
    if not file.is_file() or zipfile.is_zipfile(file):
        return False
    return "adapter" in read_header(file).metadata


def adapter_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], name: str) -> Adapter:
    """The adapter of given tensors and metadata, as they stand in its file.

    Args:
        tensors: Tensors of the adapter.
        metadata: Metadata, with its description under ``adapter``.
        name: Name of the adapter for messages.

    Raises:
        ValueError: If there is no description or it is damaged, or the tensors do not fit it.

    Example:
        >>> metadata = {"adapter": '{"kind": "lora", "base": "", "base_identity": ""}'}
        >>> adapter_of({}, metadata, "a").kind
        'lora'
    """
    if "adapter" not in metadata:
        raise ValueError(f"{name} must be an adapter, it is something else; load models by load()")
    try:
        told = parse_object(metadata["adapter"])
        texts = {key: str(told[key]) for key in ("kind", "base", "base_identity")}
        scales = {str(key): float(value) for key, value in dict(told.get("scales", {})).items()}
        fields = {key: dict(told.get(key, {})) for key in ("backbone", "text")}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"the description of {name} must have kind, base and base_identity, but"
            f" {one_line(error)}; the file may be damaged or of a newer version"
        ) from error
    rest = {key: value for key, value in metadata.items() if key not in ("adapter", "format")}
    return Adapter(
        name, tensors=tensors, scales=scales, backbone=fields["backbone"], text=fields["text"],
        metadata=rest, **texts,
    )  # fmt: skip
