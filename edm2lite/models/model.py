"""Model: a denoiser with everything that is needed to use it, and the hash that tells it apart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import xxhash

from edm2lite.diffusion.precond import Precond
from edm2lite.models.class_names import class_title, names_in_metadata
from edm2lite.models.encoders import Encoder
from edm2lite.network.conditions import ClassLabel, described
from edm2lite.strict_json import parse
from edm2lite.text.encoder import TextEncoder

EXPORTED = "model.safetensors"
"""Name of the weights in the folder of an exported model."""

IN_FOLDERS = ("last.safetensors", EXPORTED)
"""Names of the weights in the folder of a run, and in that of an exported model."""


@dataclass(frozen=True, repr=False)
class Model:
    """A denoiser with everything that is needed to use it.

    Attributes:
        name: Name by which it was loaded.
        net: The denoiser, in evaluation mode.
        encoder: Encoder between images and what ``net`` works on.
        metadata: Metadata of its file: run, nimg, sigma_rel, ...
        text_encoder: Encoder of prompts, or None for a network that is told no text.

    Example:
        >>> from edm2lite.diffusion.precond import PrecondConfig
        >>> from edm2lite.models import PixelEncoder
        >>> from edm2lite.network.unet import UNetConfig
        >>> unet = UNetConfig(img_resolution=8, img_channels=1, label_dim=10, model_channels=8,
        ...                   channel_mult=(1,), num_blocks=1, attn_resolutions=(), head_channels=8)
        >>> model = Model("untrained", Precond(PrecondConfig(backbone=unet)), PixelEncoder(), {})
        >>> model
        Model('untrained', unet, 8,238 parameters, 1 x 8 x 8, takes 10 classes)
        >>> model.num_classes
        10
    """

    name: str
    net: Precond
    encoder: Encoder
    metadata: dict[str, str]
    text_encoder: TextEncoder | None = None

    def __repr__(self) -> str:
        shape, told = self.net.config.backbone, self.net.config.backbone.conditions
        size = f"{shape.img_channels} x {shape.img_resolution} x {shape.img_resolution}"
        weights = sum(p.numel() for p in self.net.parameters())
        text = f"{self.name!r}, {shape.kind}, {weights:,} parameters, {size}"
        return f"Model({text}{f', takes {described(told)}' if told else ''})"

    @property
    def num_classes(self) -> int:
        """Number of classes that the network can be told, 0 for none."""
        conditions = self.net.config.backbone.conditions
        return sum(c.num_classes for c in conditions if isinstance(c, ClassLabel))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class, "" for one without a name; empty if the model has no names.

        Raises:
            ValueError: If the names in its metadata are damaged.
        """
        return names_in_metadata(self.metadata, self.num_classes, self.name)

    def class_title(self, index: int) -> str:
        """What a class is called: its name, or else ``class`` and its number."""
        return class_title(self.class_names, index)

    @property
    def short_name(self) -> str:
        """``last`` for a run, ``sigma_rel=0.1`` for an average, else the name of file or folder."""
        path = Path(self.name)
        if path.is_dir():
            return "last" if (path / IN_FOLDERS[0]).is_file() else path.resolve().name
        if path.is_file():
            return path.stem
        return self.name.rpartition("@")[2].replace(":", "-")  # no colons in names of folders

    @property
    def identity(self) -> str:
        """Hash of where the weights come from: of the snapshots of an average, or of the file.

        It is equal for an average that is rebuilt now, alone or with others, on this machine or on
        another one, and one that is read from a file; their coefficients agree but for rounding.
        """
        return self._hash(_recipe(self.metadata))

    @property
    def earlier_identity(self) -> str:
        """The identity by which versions before 0.3 knew these weights: of exact coefficients."""
        return self._hash(self.metadata.get("inputs"))

    def _hash(self, recipe: str | None) -> str:
        source = recipe or self.metadata.get("digest")
        if source is not None:
            source += self.metadata.get("adapters", "")
        if source is None:  # a file that another tool has written: hash the weights themselves
            state = xxhash.xxh3_64()
            for name, value in self.net.state_dict().items():
                state.update(name.encode())
                state.update(value.detach().cpu().contiguous().reshape(-1).numpy())
            return state.hexdigest()
        return xxhash.xxh3_64_hexdigest(source.encode())


def _recipe(metadata: Mapping[str, str]) -> str | None:
    """What an average was rebuilt from, and how; None for weights that are none."""
    text = metadata.get("inputs")
    if text is None:
        return None
    try:
        digests = [entry["digest"] for entry in parse(text)]
    except (ValueError, TypeError, KeyError):  # another tool's
        return text
    how = [metadata.get(key) for key in ("profile", "solver", "solver_revision")]
    return json.dumps([how, digests])
