"""Imports DiT and SiT: released checkpoints (``*.pt``), and folders of diffusers.

Both are the network of :mod:`edm2lite.network.dit` on latents times 0.18215. DiT (arXiv 2212.09748)
predicts the noise, and is told the step of DDPM's linear schedule. SiT (arXiv 2401.08740) predicts
the velocity of rectified flow with the data at time 1. The weights of both were trained with label
dropout, and so can be their own unconditional guide. Checkpoints have equal tensors in both cases;
their name or the caller says which it is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import xxhash
from torch import Tensor

from edm2lite.diffusion.precond import PrecondConfig
from edm2lite.interop.dit_config import (
    check_positions,
    check_tensors,
    config_of,
    config_of_diffusers,
)
from edm2lite.interop.dit_names import from_diffusers
from edm2lite.interop.torch_zip import read_torch, state_dict
from edm2lite.models.encoders import LatentEncoder
from edm2lite.network.dit import DiTConfig
from edm2lite.network.layers import MPConv, normalize_weights_
from edm2lite.tensorfile import MODEL_FORMAT, load_tensors, save_tensors

Family = Literal["dit", "sit"]
LICENSES: dict[Family, str] = {"dit": "cc-by-nc-4.0", "sit": "mit"}
"""Licenses of the released weights, as the Hub calls them."""

_TITLES: dict[Family, str] = {"dit": "DiT", "sit": "SiT"}
_VAE = "stabilityai/sd-vae-ft-ema"
_SCALE = 0.18215
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_OBJECTIVES: dict[Family, dict[str, Any]] = {
    "dit": {"parametrization": "epsilon", "embedding": "step"},
    "sit": {"parametrization": "sit"},
}


def import_file(
    path: str | Path,
    out: str | Path | None = None,
    *,
    family: Family | None = None,
    vae: str = _VAE,
    license: str | None = None,
) -> Path:
    """Convert a checkpoint of DiT or SiT to a model file; nothing in it is executed.

    Args:
        path: A state dict, or a training state, of which the averaged weights are taken.
        out: The file to write. [default: beside it, with the suffix ``.safetensors``]
        family: What the network was trained as. [default: as the name begins, DiT or SiT]
        vae: Folder or Hub name of the autoencoder of its latents.
        license: License of the weights, as the Hub calls it. [default: that of the released ones]

    Returns:
        The path of the model file.

    Raises:
        FileNotFoundError: If ``path`` does not exist.
        ValueError: If the file is damaged, asks for anything that a checkpoint does not need, does
            not hold a DiT, or if ``out`` exists.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "DiT-S-8.pt"
        >>> torch.save({"x_embedder.proj.weight": torch.ones(384, 4, 8, 8)}, path)
        >>> import_file(path)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: ...DiT-S-8.pt must hold all tensors of a DiT, pos_embed is missing
    """
    path = Path(path)
    family = family or _family_in(path.name)
    if family not in get_args(Family):
        raise ValueError(f"family must be dit or sit, got {family!r}")
    file = read_torch(path)
    try:
        tensors = state_dict(file)
        config = config_of(tensors)
        found = {re.sub(r"^blocks\.", "layers.", name): value for name, value in tensors.items()}
        check_positions(found.pop("pos_embed"), config)
        check_tensors(found, config)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    return _write(path, out, found, config, family, vae, license)


def import_folder(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    vae: str | None = None,
    license: str | None = None,
) -> Path:
    """Convert a ``DiTTransformer2DModel`` of diffusers to a model file; nothing is executed.

    The result gives what diffusers gives, which embeds steps in slightly other frequencies than the
    released DiT was trained with.

    Args:
        folder: Folder of the model, or of a pipeline that contains one as ``transformer``.
        out: The file to write. [default: beside the folder, with the suffix ``.safetensors``]
        vae: Folder or Hub name of the autoencoder. [default: that of the pipeline, if there is one]
        license: License of the weights, as the Hub calls it. [default: that of the released ones]

    Returns:
        The path of the model file.

    Raises:
        FileNotFoundError: If the folder does not hold such a model.
        ValueError: If the model is of another kind, damaged, or if ``out`` exists.

    Example:
        >>> import tempfile
        >>> import_folder(tempfile.mkdtemp())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileNotFoundError: ... must hold a DiTTransformer2DModel, it has no config.json
    """
    folder = Path(folder)
    inner = folder / "transformer" if (folder / "transformer").is_dir() else folder
    config, files = inner / "config.json", [inner / name for name in _WEIGHTS]
    if not config.is_file():
        raise FileNotFoundError(f"{inner} must hold a DiTTransformer2DModel, it has no config.json")
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{inner} must hold {' or '.join(_WEIGHTS)}, and holds neither")
    tensors = load_tensors(file)[0] if file.suffix == ".safetensors" else _load_bin(file)
    try:
        network = config_of_diffusers(json.loads(config.read_text(encoding="utf-8")))
        found = from_diffusers(tensors)
        check_tensors(found, network)
    except ValueError as error:
        raise ValueError(f"{inner} {error}") from error
    own = str((folder / "vae").resolve()) if (folder / "vae").is_dir() else _VAE
    return _write(inner, out or f"{folder.resolve()}.safetensors", found, network, "dit",
                  vae or own, license, source=file)  # fmt: skip


def _family_in(name: str) -> Family:
    match = re.match("dit|sit", name.lower())
    if match is None:
        raise ValueError(
            f"{name} does not say what it was trained as, by a name that begins with DiT or SiT;"
            " give the family (--family dit or sit)"
        )
    family: Family = "dit" if match[0] == "dit" else "sit"
    return family


def _write(
    path: Path,
    out: str | Path | None,
    tensors: Mapping[str, Tensor],
    network: DiTConfig,
    family: Family,
    vae: str,
    license: str | None,
    source: Path | None = None,
) -> Path:
    out = path.with_suffix(".safetensors") if out is None else Path(out)
    if out.exists():
        raise ValueError(f"the result must go to a new file, {out} exists; give another --out")
    config = PrecondConfig(backbone=network, sigma_data=1.0, **_OBJECTIVES[family])
    channels = network.img_channels
    encoder = LatentEncoder(
        vae=vae, mean=(0.0,) * channels, std=(1 / _SCALE,) * channels, sigma_data=1.0,
        input_range="-1..1",
    )  # fmt: skip
    prefix = network.tensor_prefix
    named = {f"{prefix}.{name}": value for name, value in tensors.items()}
    metadata = {
        "format": MODEL_FORMAT,
        "model": config.to_json(),
        "encoder": encoder.to_json(),
        "license": license or LICENSES[family],
        "label_dropout": "0.1",
        "source": f"{_TITLES[family]} {path.name}",
        "source_digest": _digest(source or path),
    }
    return save_tensors(out, {**named, **_untrained_uncertainty(config)}, metadata)


def _untrained_uncertainty(config: PrecondConfig) -> dict[str, Tensor]:
    """An uncertainty head, which these networks do not have, as at the start of a training."""
    generator, channels = torch.Generator().manual_seed(0), config.logvar_channels
    head = MPConv(channels, 1)
    with torch.no_grad():
        head.weight.copy_(torch.randn(1, channels, generator=generator))
    normalize_weights_(head)
    return {
        "logvar_fourier.freqs": 2 * math.pi * torch.randn(channels, generator=generator),
        "logvar_fourier.phases": 2 * math.pi * torch.rand(channels, generator=generator),
        "logvar_linear.weight": head.weight.detach(),
    }


def _digest(path: Path) -> str:
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(8 * 2**20):
            state.update(block)
    return state.hexdigest()


def _load_bin(file: Path) -> dict[str, Tensor]:
    opened = read_torch(file)
    try:
        return state_dict(opened)
    except ValueError as error:
        raise ValueError(f"{file} {error}") from error
