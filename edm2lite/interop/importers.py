"""Weights of any other tool by a function of yours: ``edm2lite import FILE --importer mine:read``.

The function reads the file; what it returns is checked against the network, and written as a model
file like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.kinds import Kinds
from edm2lite.models.encoders import Encoder, PixelEncoder


@dataclass(frozen=True)
class ImportedModel:
    """What an importer has read.

    Attributes:
        config: Configuration of the denoiser that the weights belong to.
        tensors: Its state dict, names as in :class:`edm2lite.diffusion.precond.Precond`.
        encoder: What lies between images and the denoiser.
        metadata: Further strings for the file, such as ``license``, ``run`` or ``nimg``.
    """

    config: PrecondConfig
    tensors: Mapping[str, Tensor]
    encoder: Encoder = field(default_factory=PixelEncoder)
    metadata: Mapping[str, str] = field(default_factory=dict)


Importer = Callable[[Path], ImportedModel]

IMPORTERS: Kinds[Importer] = Kinds("importer", {})
"""Importers are named ``module:function``; there are none by a short name."""


def import_with(
    importer: str | Importer, source: str | Path, out: str | Path | None = None
) -> Path:
    """Convert a file of another tool to a model file.

    Args:
        importer: Function from the path of the file to an :class:`ImportedModel`, or its name
            ``module:function``.
        source: The file.
        out: The model file. [default: beside the source, with the suffix ``.safetensors``]

    Returns:
        The path of the model file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no such importer, its tensors do not fit its configuration, or the
            result would replace the source.

    Example:
        >>> import tempfile, torch
        >>> from edm2lite.network.unet import UNetConfig
        >>> unet = UNetConfig(img_resolution=8, img_channels=1, model_channels=16,
        ...                   channel_mult=(1,), num_blocks=1, attn_resolutions=(),
        ...                   head_channels=16)
        >>> config = PrecondConfig(backbone=unet)
        >>> def read(path):
        ...     return ImportedModel(config, torch.load(path, weights_only=True))
        >>> path = Path(tempfile.mkdtemp()) / "theirs.pt"
        >>> torch.save(Precond(config).state_dict(), path)
        >>> import_with(read, path).name
        'theirs.safetensors'
    """
    source = Path(source)
    if not source.is_file():
        raise FileNotFoundError(f"no file to import at {source}")
    out = source.with_suffix(".safetensors") if out is None else Path(out)
    if out.resolve() == source.resolve():
        raise ValueError(f"the model file must not replace {source}; give another --out")
    read = IMPORTERS.find(importer) if isinstance(importer, str) else importer
    found = read(source)
    if not isinstance(found, ImportedModel):
        raise ValueError(
            f"importer {importer} must return an ImportedModel, got {type(found).__name__}"
        )
    net = Precond.from_tensors(found.tensors, {"model": found.config.to_json()}, str(source))
    return net.save(out, {"encoder": found.encoder.to_json(), **found.metadata})
