"""Feature extractors: torch-fidelity's by name, and anybody's own in three lines.

A file with these lines, named on the command line as ``--extractor my_features:mine``:

    from edm2lite.metrics.extractors import register

    @register("mine")
    def mine(weights): return MyNetwork(weights)  # a module: uint8 [N, 3, H, W] -> [N, F]
"""

from __future__ import annotations

import hashlib
import importlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edm2lite.metrics import dinov2

Build = Callable[[Path | None], nn.Module]


@dataclass(frozen=True)
class Extractor:
    """A feature extractor of torch-fidelity's registry.

    Attributes:
        name: In the registry, e.g. ``inception-v3-compat``; ``digits`` is ours.
        weights: File with its weights, or None for those that are downloaded.
        module: uint8 [N, 3, H, W] -> tuple with one [N, F] tensor.
        weights_digest: SHA-256 of the file, "" without one.
        device: Where it computes.
    """

    name: str
    weights: Path | None
    module: Any = field(repr=False)
    weights_digest: str
    device: torch.device = torch.device("cpu")

    @torch.no_grad()
    def features(self, images: Tensor) -> NDArray[np.float64]:
        """uint8 [N, C, H, W] with C = 1 or 3 -> float64 [N, F].

        Raises:
            ValueError: Images of another kind, or features that are not finite.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                "features are of uint8 images [N, C, H, W] with 1 or 3 channels, got"
                f" {images.dtype} {list(images.shape)}"
            )
        (features,) = self.module(images.to(self.device).expand(-1, 3, -1, -1).contiguous())
        if not features.isfinite().all():
            raise ValueError(
                f"features of {self.name} came out as NaN or infinite; check its weights"
            )
        return features.double().cpu().numpy()


def register(name: str) -> Callable[[Build], Build]:
    """Decorates a function from a weights file (or None) to a module, see the top of this file."""
    from torch_fidelity import FeatureExtractorBase, register_feature_extractor

    def decorate(build: Build) -> Build:
        class Registered(FeatureExtractorBase):
            def __init__(
                self,
                name: str,
                features_list: list[str],
                feature_extractor_weights_path: str | None = None,
                **kwargs: Any,
            ):
                super().__init__(name, features_list)
                path = feature_extractor_weights_path
                self.net = build(None if path is None else Path(path))

            @staticmethod
            def get_provided_features_list() -> tuple[str, ...]:
                return ("features",)

            @staticmethod
            def get_default_feature_layer_for_metric(metric: str) -> str:
                return "features"

            @staticmethod
            def can_be_compiled() -> bool:
                return False

            def forward(self, x: Tensor) -> tuple[Tensor, ...]:
                return (self.net(x),)

        register_feature_extractor(name, Registered)
        return build

    return decorate


def open_extractor(name: str, weights: Path | None, device: torch.device) -> Extractor:
    """Create an extractor by its name in torch-fidelity's registry, or as ``module:name``.

    Raises:
        ImportError: torch-fidelity is missing, or the module of ``module:name``.
        FileNotFoundError: There is no such weights file, or no network to download from.
        ValueError: No such extractor, or the weights do not fit it.
    """
    try:
        from torch_fidelity import registry
    except ImportError as error:
        raise ImportError("metrics need torch-fidelity; pip install 'edm2lite[metrics]'") from error
    import edm2lite.metrics.digits_classifier  # noqa: F401  (registers its extractor)

    module, _, short = name.rpartition(":")
    if module:
        importlib.import_module(module)
    if short not in registry.FEATURE_EXTRACTORS_REGISTRY:
        known = ", ".join(sorted(registry.FEATURE_EXTRACTORS_REGISTRY))
        raise ValueError(f"extractor must be one of {known}; got {name!r}")
    if weights is not None and not weights.is_file():
        raise FileNotFoundError(f"no extractor weights at {weights}")
    if weights is not None and weights.suffix != ".safetensors":
        _check_pickle(weights)
    created = _create(short, weights).to(device).eval()
    return Extractor(name, weights, created, _digest(weights), device)


def _create(name: str, weights: Path | None) -> Any:
    from torch_fidelity import registry

    try:
        if name in dinov2.URLS:
            return dinov2.extractor(name, weights)
        cls = registry.FEATURE_EXTRACTORS_REGISTRY[name]
        layer = cls.get_default_feature_layer_for_metric("fid")
        path = None if weights is None else str(weights)
        return cls(name, [layer], feature_extractor_weights_path=path).requires_grad_(False)
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


def _check_pickle(weights: Path) -> None:
    """Refuse a torch file that holds more than tensors: torch-fidelity would execute it."""
    try:
        torch.load(weights, weights_only=True, map_location="cpu", mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{weights} must be a torch file of tensors and nothing else, torch's weights-only"
            f" loading says: {reason}; nothing in it was executed"
        ) from error
