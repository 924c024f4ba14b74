"""Loading a model by its name: a file, a folder, or an average of any length of a run.

| name                                 | model                                                    |
|--------------------------------------|----------------------------------------------------------|
| ``model.safetensors``                | a model file, a snapshot or a reconstruction             |
| ``RUN``                              | the raw weights at the end of the run                    |
| ``FOLDER``                           | an exported model (:mod:`edm2lite.models.hub`)           |
| ``RUN@sigma_rel=0.13``               | an average rebuilt on the spot, at the latest snapshot   |
| ``RUN@gamma=4.6,nimg=64Mi``          | an average by its exponent, at another time              |
| ``RUN@decay=cosine:0.2``             | an average that emulates a decay of the learning rate    |
| ``RUN@sigma_rel=0.25,max_error=0.1`` | even if its predicted error is above 0.02                |
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import xxhash
from torch import Tensor

from edm2lite.diffusion.precond import Precond
from edm2lite.ema import Reconstruction, plan_targets
from edm2lite.ema.building import build
from edm2lite.ema.targets import MAX_ERROR
from edm2lite.models.encoders import Encoder, PixelEncoder, encoder_from_json
from edm2lite.network.conditions import ClassLabel
from edm2lite.strict_json import parse
from edm2lite.tensorfile import load_tensors
from edm2lite.text.encoder import TextEncoder, text_encoder_from_json
from edm2lite.units import parse_count

EXPORTED = "model.safetensors"
"""Name of the weights in the folder of an exported model."""

_IN_FOLDERS = ("last.safetensors", EXPORTED)


@dataclass(frozen=True)
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
        >>> from edm2lite.network.unet import UNetConfig
        >>> unet = UNetConfig(img_resolution=8, img_channels=1, label_dim=10, model_channels=8,
        ...                   channel_mult=(1,), num_blocks=1, attn_resolutions=(), head_channels=8)
        >>> model = Model("untrained", Precond(PrecondConfig(backbone=unet)), PixelEncoder(), {})
        >>> model.num_classes
        10
    """

    name: str
    net: Precond
    encoder: Encoder
    metadata: dict[str, str] = field(repr=False)
    text_encoder: TextEncoder | None = field(repr=False, default=None)

    @property
    def num_classes(self) -> int:
        """Number of classes that the network can be told, 0 for none."""
        conditions = self.net.config.backbone.conditions
        return sum(c.num_classes for c in conditions if isinstance(c, ClassLabel))

    @property
    def short_name(self) -> str:
        """``last`` for a run, ``sigma_rel=0.1`` for an average, else the name of file or folder."""
        path = Path(self.name)
        if path.is_dir():
            return "last" if (path / _IN_FOLDERS[0]).is_file() else path.resolve().name
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


def load(spec: str | Path) -> Model:
    """Load a model by its name; no code in a file is executed.

    A network of a class of yours is found if its module is imported already.

    Args:
        spec: Name of the model, see :mod:`edm2lite.models.loading`.

    Raises:
        FileNotFoundError: If there is no such file or run.
        ValueError: If the name is malformed, a file is damaged or not one of our models, the class
            of its network is not imported, or an average cannot be rebuilt exactly enough.

    Example:
        >>> import tempfile
        >>> from edm2lite.diffusion.precond import PrecondConfig
        >>> from edm2lite.network.unet import UNetConfig
        >>> unet = UNetConfig(img_resolution=8, img_channels=1, model_channels=8, channel_mult=(1,),
        ...                   num_blocks=1, attn_resolutions=(), head_channels=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Precond(PrecondConfig(backbone=unet)).save(f"{folder}/net.safetensors")
        ...     model = load(path)
        >>> model.encoder, model.net.config.backbone.img_resolution
        (PixelEncoder(kind='pixels', shift=127.5, scale=127.5), 8)
    """
    return _assembled(str(spec), *read(spec))


def read(spec: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, in the types in which they are stored, and metadata of a model by its name.

    Args:
        spec: Name of the model, as :func:`load` takes it.

    Raises:
        FileNotFoundError: If there is no such file or run.
        ValueError: As :func:`load`, but the tensors may be of any model.
    """
    text = str(spec)
    run, at, query = text.rpartition("@")
    if at and not Path(text).exists():
        rebuilt = _rebuild(run, query, text)
        return rebuilt.state_dict or {}, rebuilt.metadata
    file = Path(text)
    if file.is_dir():
        found = [file / name for name in _IN_FOLDERS if (file / name).is_file()]
        file = found[0] if found else file / _IN_FOLDERS[0]
    if not file.is_file() and (Path(text) / "snapshots").is_dir():
        raise FileNotFoundError(
            f"{text} must have ended to be a model, it has no {file.name} yet; give an average of"
            f" it so far, as in {text}@sigma_rel=0.10"
        )
    if not file.is_file():
        raise FileNotFoundError(f"no model at {file}; give a file, a run, or RUN@sigma_rel=0.10")
    _refuse_other_kinds(file)
    return load_tensors(file)


def _refuse_other_kinds(file: Path) -> None:
    if file.suffix == ".pkl":
        raise ValueError(
            f"{file} must be a model file, it is a pickle; convert a network of EDM2 by edm2lite"
            " import"
        )
    if zipfile.is_zipfile(file):
        raise ValueError(
            f"{file} must be a model, it is a ZIP, as data sets of images are; give a model file, a"
            " run, or RUN@sigma_rel=0.10"
        )


def from_reconstruction(rebuilt: Reconstruction, name: str) -> Model:
    """The model of a reconstruction that carries its ``state_dict``.

    Args:
        rebuilt: Reconstruction of one of our models.
        name: Name of the model.
    """
    assert rebuilt.state_dict is not None, name
    return _assembled(name, rebuilt.state_dict, rebuilt.metadata)


def _rebuild(run: str, query: str, text: str) -> Reconstruction:
    values: dict[str, str] = {}
    for part in query.split(","):
        key, equals, value = part.partition("=")
        known = key in ("sigma_rel", "gamma", "decay", "nimg", "max_error")
        if not run or not known or not equals or key in values:
            raise ValueError(
                f"{text} is not a file and must name an average as RUN@sigma_rel=0.10,"
                " RUN@decay=cosine:0.2 or RUN@gamma=6.9,nimg=64Mi"
            )
        values[key] = value
    nimg = parse_count(values.pop("nimg", None))
    max_error = _number("max_error", values.pop("max_error", f"{MAX_ERROR}"), text)
    if len(values) != 1 or not isinstance(nimg, int | None):
        raise ValueError(f"{text} must give one of sigma_rel, gamma and decay, and nimg as in 64Mi")
    key, value = values.popitem()
    if key == "decay":
        plans = plan_targets(run, decay=value, nimg=nimg)
    else:
        length = _number(key, value, text)
        sigma_rel, gamma = (length, None) if key == "sigma_rel" else (None, length)
        plans = plan_targets(run, sigma_rel=sigma_rel, gamma=gamma, nimg=nimg)
    if not plans[0].predicted_error <= max_error:
        raise ValueError(
            f"{text} would have a predicted error of {plans[0].predicted_error:.1e}, above"
            f" {max_error:g}: the snapshots cannot give this length; choose another, or allow it by"
            f" adding ,max_error={2 * plans[0].predicted_error:.1g}"
        )
    return build(plans)[0]


def _number(key: str, value: str, text: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{key} in {text} must be a number, got {value!r}") from None


def _assembled(name: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Model:
    net = Precond.from_tensors(tensors, metadata, name)
    encoder: Encoder = PixelEncoder()
    if "encoder" in metadata:
        encoder = encoder_from_json(metadata["encoder"], name)
    text_encoder = None
    if "text_encoder" in metadata:
        text_encoder = text_encoder_from_json(metadata["text_encoder"], name)
        taken = {c.name: c for c in net.config.backbone.conditions}
        other = [c for c in text_encoder.conditions if taken.get(c.name, c) != c]
        if other:
            raise ValueError(
                f"the text encoder of {name} must give what the network takes,"
                f" {taken[other[0].name].describe()}, it gives {other[0].describe()}; the file was"
                " altered"
            )
    return Model(name, net, encoder, metadata, text_encoder)
