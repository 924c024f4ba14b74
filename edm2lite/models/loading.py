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

A run that has trained an adapter, or the file of one, stands for the model that it was trained on
with the adapter; that model is found by the name that the run gave it.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from edm2lite.diffusion.precond import Precond
from edm2lite.ema import Reconstruction, plan_targets
from edm2lite.ema.building import build
from edm2lite.ema.targets import MAX_ERROR
from edm2lite.models.adapters import Adapter, adapter_of
from edm2lite.models.encoders import Encoder, PixelEncoder, encoder_from_json
from edm2lite.models.merging import merged, without_source
from edm2lite.models.model import EXPORTED as EXPORTED
from edm2lite.models.model import IN_FOLDERS
from edm2lite.models.model import Model as Model
from edm2lite.models.strengths import parse_strength
from edm2lite.tensorfile import MODEL_FORMAT, load_tensors, read_header
from edm2lite.text.named import text_encoder_from_json
from edm2lite.units import parse_count


def load(spec: str | Path, adapters: Sequence[Adapter | str | Path] = ()) -> Model:
    """Load a model by its name; no code in a file is executed.

    A network of a class of yours is found if its module is imported already.

    Args:
        spec: Name of the model, see :mod:`edm2lite.models.loading`.
        adapters: Adapters to add to it, see :func:`with_adapters`.

    Raises:
        FileNotFoundError: If there is no such file or run.
        ValueError: If the name is malformed, a file is damaged or not one of our models, the class
            of its network is not imported, an average cannot be rebuilt exactly enough, or an
            adapter was trained on another model.

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
    return with_adapters(_assembled(str(spec), *read(spec)), adapters)


def with_adapters(
    model: Model, adapters: Sequence[Adapter | tuple[Adapter, float] | str | Path]
) -> Model:
    """A model with adapters added to it; the model itself stays as it is.

    Args:
        model: The model that the adapters were trained on.
        adapters: Adapters, alone or in a pair with a strength, or their names as
            :func:`load_adapter` takes them, with a strength as in ``FILE:0.5``. [default: 1]

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is damaged, or an adapter was trained on another model.
    """
    chosen = []
    for given in adapters:
        if isinstance(given, str | Path):
            path, strength = parse_strength(str(given))
            adapter = load_adapter(path)
        else:
            adapter, strength = (given, 1.0) if isinstance(given, Adapter) else given
        adapter.check_base(model.identity, model.name)
        chosen.append((adapter, strength))
    if not any(strength for _, strength in chosen):
        return model
    metadata = {**model.metadata, "model": model.net.config.to_json()}
    found = _assembled(model.name, *merged(model.net.state_dict(), metadata, chosen))
    text = found.text_encoder or model.text_encoder
    return dataclasses.replace(model, net=found.net, metadata=found.metadata, text_encoder=text)


def read(spec: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, in the types in which they are stored, and metadata of a model by its name.

    Args:
        spec: Name of the model, as :func:`load` takes it.

    Raises:
        FileNotFoundError: If there is no such file or run.
        ValueError: As :func:`load`, but the tensors may be of any model.
    """
    return _with_base(*_stored(str(spec)), str(spec))


def load_adapter(spec: str | Path) -> Adapter:
    """An adapter by its name: its file, the run that trained it, or an average of that run.

    Args:
        spec: Name of the adapter, in the forms that :func:`load` takes.

    Raises:
        FileNotFoundError: If there is no such file or run.
        ValueError: If it is damaged, or no adapter.
    """
    return adapter_of(*_stored(str(spec)), str(spec))


def _stored(text: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file or an average, as they are."""
    run, at, query = text.rpartition("@")
    if at and not Path(text).exists():
        rebuilt = build([_planned(run, query, text)])[0]
        return rebuilt.state_dict or {}, rebuilt.metadata
    return load_tensors(_file(text))


def read_metadata(spec: str | Path) -> dict[str, str]:
    """The metadata that :func:`read` returns, without most of its work."""
    text = str(spec)
    run, at, query = text.rpartition("@")
    is_average = at and not Path(text).exists()
    header = None if is_average else read_header(_file(text))
    metadata = _planned(run, query, text).metadata if header is None else header.metadata
    return read(spec)[1] if "adapter" in metadata else metadata


def _file(text: str) -> Path:
    """The file of a model that is no average."""
    file = Path(text)
    if file.is_dir():
        found = [file / name for name in IN_FOLDERS if (file / name).is_file()]
        file = found[0] if found else file / IN_FOLDERS[0]
    if not file.is_file() and (Path(text) / "snapshots").is_dir():
        raise FileNotFoundError(
            f"{text} must have ended to be a model, it has no {file.name} yet; give an average of"
            f" it so far, as in {text}@sigma_rel=0.10"
        )
    if not file.is_file():
        raise FileNotFoundError(f"no model at {file}; give a file, a run, or RUN@sigma_rel=0.10")
    _refuse_other_kinds(file)
    return file


def _with_base(
    tensors: dict[str, Tensor], metadata: dict[str, str], name: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a model; those of an adapter with the model that it belongs to."""
    if "adapter" not in metadata:
        return tensors, metadata
    adapter = adapter_of(tensors, metadata, name)
    try:
        base = load(adapter.base)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{name} was trained on {adapter.base}, which must be there to load it: {error}"
        ) from error
    adapter.check_base(base.identity, base.name)
    told = {**base.metadata, "model": base.net.config.to_json()}
    found, told = merged(base.net.state_dict(), told, [(adapter, 1.0)])
    own = {**adapter.metadata, "format": MODEL_FORMAT, "base": adapter.base}
    of_base = ("label_dropout", "unlabeled", "text_encoder")
    kept = {key: value for key, value in told.items() if key in of_base}
    return found, {**without_source(told), **own, **kept}  # what the base was not told, it is not


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
    return _assembled(name, *_with_base(rebuilt.state_dict, rebuilt.metadata, name))


def _planned(run: str, query: str, text: str) -> Reconstruction:
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
    return plans[0]


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
