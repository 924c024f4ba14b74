"""Finding a model by its name: a file, a run, or an average of any length of a run.

========================================  =====================================================
``model.safetensors``                     a model file, a snapshot or a reconstruction
``RUN``                                   the raw weights at the end of the run
``RUN@sigma_rel=0.13``                    an average rebuilt on the spot, at the latest snapshot
``RUN@gamma=4.6,nimg=64Mi``               the same by exponent, at another time
========================================  =====================================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from edm2lite.ema import Reconstruction, reconstruct
from edm2lite.encoders import Encoder, PixelEncoder, encoder_from_json
from edm2lite.precond import Precond
from edm2lite.tensorfile import load_tensors
from edm2lite.units import parse_count


@dataclass(frozen=True)
class Model:
    """A denoiser with what is needed to use it.

    Attributes:
        name: As it was asked for.
        net: In evaluation mode.
        encoder: Between images and what ``net`` works on.
        metadata: What its file says: run, nimg, sigma_rel, ...
    """

    name: str
    net: Precond
    encoder: Encoder
    metadata: dict[str, str] = field(repr=False)

    @property
    def identity(self) -> str:
        """Hash of the weights' origin, the same for an average rebuilt now or read from a file."""
        source = self.metadata.get("inputs") or self.metadata.get("digest") or ""
        return xxhash.xxh3_64_hexdigest(source.encode())


def load(spec: str | Path) -> Model:
    """Load a model by name (see the module); no code in a file is executed.

    Raises:
        FileNotFoundError: There is no such file or run.
        ValueError: The name is malformed, a file is damaged or not one of our models.
    """
    text = str(spec)
    path, at, query = text.partition("@")
    if at and not Path(text).exists():
        return from_reconstruction(_rebuild(path, query, text), text)
    file = Path(text)
    if file.is_dir():
        file = file / "last.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"no model at {file}; give a file, a run, or RUN@sigma_rel=0.10")
    tensors, metadata = load_tensors(file)
    return Model(text, Precond.from_tensors(tensors, metadata, text), _encoder(metadata), metadata)


def from_reconstruction(rebuilt: Reconstruction, name: str) -> Model:
    """A model of a reconstruction that carries its ``state_dict``."""
    assert rebuilt.state_dict is not None, name
    net = Precond.from_tensors(rebuilt.state_dict, rebuilt.metadata, name)
    return Model(name, net, _encoder(rebuilt.metadata), rebuilt.metadata)


def _rebuild(run: str, query: str, text: str) -> Reconstruction:
    values: dict[str, str] = {}
    for part in query.split(","):
        key, equals, value = part.partition("=")
        if key not in ("sigma_rel", "gamma", "nimg") or not equals or key in values:
            raise ValueError(
                f"{text} must name its average as @sigma_rel=0.10 or @gamma=6.9,nimg=64Mi"
            )
        values[key] = value
    nimg = parse_count(values.pop("nimg", None))
    if len(values) != 1 or not isinstance(nimg, int | None):
        raise ValueError(f"{text} must give one of sigma_rel and gamma, and nimg as in 64Mi")
    key, value = values.popitem()
    try:
        length = float(value)
    except ValueError:
        raise ValueError(f"{key} in {text} must be a number, got {value!r}") from None
    sigma_rel, gamma = (length, None) if key == "sigma_rel" else (None, length)
    return next(reconstruct(run, sigma_rel=sigma_rel, gamma=gamma, nimg=nimg))


def _encoder(metadata: dict[str, str]) -> Encoder:
    return encoder_from_json(metadata["encoder"]) if "encoder" in metadata else PixelEncoder()
