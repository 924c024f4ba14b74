"""Feature extractors: torch-fidelity's by name, and anybody's own in three lines.

A module with these lines makes an extractor that is named ``my_features:mine``:

    def mine(weights):            # a file given with --weights, or None
        return MyNetwork(weights)  # a torch module: uint8 [N, 3, H, W] -> [N, F]
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edm2lite.extras import require
from edm2lite.kinds import Kinds
from edm2lite.metrics import dinov2
from edm2lite.metrics.extractor_weights import tensors_alone

EXTRACTORS: Kinds[Callable[[Path | None], nn.Module]] = Kinds(
    "extractor",
    {
        "digits": "edm2lite.metrics.digits_classifier:digits_features",
        "retrieval": "edm2lite.metrics.retrieval:retrieval_features",
    },
)
"""Extractors besides torch-fidelity's: functions from a weights file (or None) to a module that
maps uint8 [N, 3, H, W] to features [N, F]."""


@dataclass(frozen=True)
class Extractor:
    """A feature extractor.

    Attributes:
        name: Its name, e.g. ``inception-v3-compat`` of torch-fidelity or ``digits`` of ours.
        weights: File with its weights, or None for those that are downloaded.
        module: Module that maps uint8 [N, 3, H, W] to [N, F], or to a tuple of one such tensor.
        weights_digest: SHA-256 of the file, "" without one.
        device: Device of the module. [default: the CPU]
        preprocessing: What is done to images before the network, where statistics record it.

    Example:
        >>> corner = Extractor("corner", None, lambda x: x[:, 0, 0, :2].float(), "")
        >>> corner.features(torch.zeros(3, 1, 8, 8, dtype=torch.uint8)).shape
        (3, 2)
    """

    name: str
    weights: Path | None
    module: Any = field(repr=False)
    weights_digest: str
    device: torch.device | None = None
    preprocessing: str = ""

    @torch.no_grad()
    def features(self, images: Tensor) -> NDArray[np.float64]:
        """Features of uint8 images [N, C, H, W] with C = 1 or 3: [N, F] float64.

        Raises:
            ValueError: If the images are of another kind, or a feature is not finite.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                "features are of uint8 images [N, C, H, W] with 1 or 3 channels, got"
                f" {images.dtype} {list(images.shape)}"
            )
        found = self.module(images.to(self.device or "cpu").expand(-1, 3, -1, -1).contiguous())
        features: Tensor = found[0] if isinstance(found, tuple) else found
        if not features.isfinite().all():
            raise ValueError(
                f"features of {self.name} came out as NaN or infinite; check its weights"
            )
        return features.double().cpu().numpy()


def open_extractor(
    name: str,
    weights: str | Path | None = None,
    device: torch.device | str = "cpu",
    *,
    trusted: bool = True,
) -> Extractor:
    """Create a feature extractor by its name.

    Args:
        name: Name in torch-fidelity's registry or in :data:`EXTRACTORS`, or ``module:name`` of a
            function of your own.
        weights: File with the weights. [default: they are downloaded]
        device: Device that computes.
        trusted: Whether a person gave the name, so that a module of theirs may be imported.

    Raises:
        ImportError: If torch-fidelity is missing.
        FileNotFoundError: If there is no such weights file, or no network to download it from.
        ValueError: If there is no such extractor, or the weights do not fit it.

    Example:
        A function that the name ``statistics_of_mine:flat`` would stand for, in a module of yours:

        >>> import sys, types
        >>> mine = types.ModuleType("statistics_of_mine")
        >>> mine.flat = lambda weights: nn.Flatten()
        >>> sys.modules["statistics_of_mine"] = mine
        >>> extractor = open_extractor("statistics_of_mine:flat")
        >>> extractor.features(torch.zeros(2, 1, 4, 4, dtype=torch.uint8)).shape
        (2, 48)
    """
    require("torch_fidelity")
    from torch_fidelity import registry

    own = name in EXTRACTORS or ":" in name
    if not own and name not in registry.FEATURE_EXTRACTORS_REGISTRY:
        known = ", ".join(sorted({*registry.FEATURE_EXTRACTORS_REGISTRY, *EXTRACTORS}))
        raise ValueError(
            f"extractor must be one of {known}, or module:name of your own, got {name!r}"
        )
    file = None if weights is None else Path(weights)
    if file is not None and not file.is_file():
        raise FileNotFoundError(f"no extractor weights at {file}")
    if own:
        module: Any = EXTRACTORS.find(name, trusted=trusted)(file)
    else:
        module = _create(name, file)
    place = torch.device(device)
    return Extractor(name, file, module.to(place).eval(), _digest(file), place, preprocessing(name))


def preprocessing(name: str) -> str:
    """What an extractor does to images before its network; "" where the name says it all.

    Example:
        >>> preprocessing("dinov2-vit-l-14"), preprocessing("inception-v3-compat")
        ('bicubic-antialiased-224', '')
    """
    return dinov2.PREPROCESSING if is_dinov2(name) else ""


def is_dinov2(name: str) -> bool:
    """Whether an extractor of this name gives features of DINOv2."""
    return name.startswith("dinov2-")


def _create(name: str, weights: Path | None) -> Any:
    from torch_fidelity import registry

    try:
        if name in dinov2.URLS:
            return dinov2.extractor(name, weights)
        cls = registry.FEATURE_EXTRACTORS_REGISTRY[name]
        layer = cls.get_default_feature_layer_for_metric("fid")
        with tensors_alone(name, weights) as file:
            path = None if file is None else str(file)
            theirs = cls(name, [layer], feature_extractor_weights_path=path).requires_grad_(False)
        return dinov2.DINOv2Features(theirs.model) if is_dinov2(name) else theirs
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{weights} does not fit extractor {name}: {reason}") from error
    except OSError as error:
        if weights is not None:
            raise
        raise FileNotFoundError(_how_to_fetch(name, error)) from error


def _how_to_fetch(name: str, error: OSError) -> str:
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    urls = {**dinov2.URLS, "inception-v3-compat": inception.URL_INCEPTION_V3}
    reason = getattr(error, "reason", error)
    if name not in urls:
        return f"the weights of extractor {name} could not be downloaded ({reason}); give --weights"
    file = Path(torch.hub.get_dir()) / "checkpoints" / urls[name].rpartition("/")[2]
    return (
        f"the weights of extractor {name} could not be downloaded ({reason}); fetch {urls[name]}"
        f" where there is network, and give the file with --weights or put it at {file}"
    )


def _digest(weights: Path | None) -> str:
    if weights is None:
        return ""
    return hashlib.sha256(weights.read_bytes()).hexdigest()
