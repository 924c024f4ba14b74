"""Feature statistics of image sets and the Fréchet distance between them.

Features and the distance are torch-fidelity's; the moments are accumulated here in float64, so that
memory does not grow with the number of images.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edm2lite.tensorfile import load_tensors, save_tensors

FORMAT = "edm2lite.stats/1"
METRIC = "fid"


@dataclass(frozen=True)
class Extractor:
    """A feature extractor of torch-fidelity's registry.

    Attributes:
        name: In the registry, e.g. ``inception-v3-compat``; ``digits`` is ours.
        weights: File with its weights, or None for those that torch-fidelity downloads.
        module: uint8 [N, 3, H, W] -> tuple with one [N, F] tensor.
        weights_digest: SHA-256 of the file, "" without one.
    """

    name: str
    weights: Path | None
    module: Any = field(repr=False)
    weights_digest: str

    @torch.no_grad()
    def features(self, images: Tensor) -> NDArray[np.float64]:
        """uint8 [N, C, H, W] with C = 1 or 3 -> float64 [N, F]."""
        images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        (features,) = self.module(images.contiguous())
        return features.double().cpu().numpy()


def open_extractor(name: str, weights: Path | None, device: torch.device) -> Extractor:
    """Create an extractor by its name in torch-fidelity's registry.

    Raises:
        ImportError: torch-fidelity is missing.
        FileNotFoundError: There is no such weights file.
        ValueError: No such extractor, or the weights do not fit it.
    """
    try:
        from torch_fidelity import registry, utils
    except ImportError as error:
        raise ImportError("metrics need torch-fidelity; pip install 'edm2lite[metrics]'") from error
    import edm2lite.digits  # noqa: F401  (registers its extractor)

    if name not in registry.FEATURE_EXTRACTORS_REGISTRY:
        known = ", ".join(sorted(registry.FEATURE_EXTRACTORS_REGISTRY))
        raise ValueError(f"extractor must be one of {known}; got {name!r}")
    if weights is not None and not weights.is_file():
        raise FileNotFoundError(f"no extractor weights at {weights}")
    if weights is not None and weights.suffix != ".safetensors":
        _check_pickle(weights)
    cls = registry.FEATURE_EXTRACTORS_REGISTRY[name]
    layer = cls.get_default_feature_layer_for_metric(METRIC)
    try:
        module = utils.create_feature_extractor(
            name,
            [layer],
            cuda=device.type == "cuda",
            verbose=False,
            feature_extractor_weights_path=None if weights is None else str(weights),
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{weights} does not fit extractor {name}: {reason}") from error
    digest = "" if weights is None else hashlib.sha256(weights.read_bytes()).hexdigest()
    return Extractor(name, weights, module, digest)


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


@dataclass(frozen=True)
class FeatureStats:
    """Moments of the features of a set of images.

    Attributes:
        count: Number of images.
        mean: [F] float64.
        cov: [F, F] float64, with the divisor count - 1.
        extractor: Name in torch-fidelity's registry.
        weights: Weights file it was made with, or "".
        weights_digest: SHA-256 of that file, or "".
        source: What the images were.
    """

    count: int
    mean: NDArray[np.float64] = field(repr=False)
    cov: NDArray[np.float64] = field(repr=False)
    extractor: str
    weights: str
    weights_digest: str
    source: str

    def save(self, path: str | Path) -> Path:
        """Write to a safetensors file, atomically."""
        metadata = {
            "format": FORMAT,
            "count": str(self.count),
            "extractor": self.extractor,
            "weights": self.weights,
            "weights_digest": self.weights_digest,
            "source": self.source,
        }
        tensors = {"mean": torch.from_numpy(self.mean), "cov": torch.from_numpy(self.cov)}
        return save_tensors(Path(path), tensors, metadata)

    @classmethod
    def load(cls, path: str | Path) -> FeatureStats:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is damaged or of another kind.
        """
        tensors, meta = load_tensors(Path(path))
        if meta.get("format") != FORMAT:
            raise ValueError(
                f"{path} must hold feature statistics; make them with edm2lite evaluate stats"
            )
        return cls(
            count=int(meta["count"]),
            mean=tensors["mean"].numpy(),
            cov=tensors["cov"].numpy(),
            extractor=meta["extractor"],
            weights=meta["weights"],
            weights_digest=meta["weights_digest"],
            source=meta["source"],
        )


def feature_stats(batches: Iterable[Tensor], extractor: Extractor, source: str) -> FeatureStats:
    """Statistics of images in one pass.

    Args:
        batches: uint8 [N, C, H, W] each.
        extractor: Of the features.
        source: Said of the images in the result.

    Raises:
        ValueError: Fewer than two images.
    """
    count, total, outer = 0, np.zeros(()), np.zeros(())
    for images in batches:
        features = extractor.features(images)
        count += len(features)
        total = total + features.sum(axis=0)
        outer = outer + features.T @ features
    if count < 2:
        raise ValueError(f"statistics need at least 2 images, {source} gave {count}")
    mean = total / count
    cov = (outer - count * np.outer(mean, mean)) / (count - 1)
    weights = "" if extractor.weights is None else str(extractor.weights)
    return FeatureStats(count, mean, cov, extractor.name, weights, extractor.weights_digest, source)


def frechet_distance(a: FeatureStats, b: FeatureStats) -> float:
    """``|m_a - m_b|**2 + tr(S_a + S_b - 2 (S_a S_b)**(1/2))``, by torch-fidelity.

    Raises:
        ValueError: The statistics are of different features.
    """
    if (a.extractor, a.weights_digest) != (b.extractor, b.weights_digest):
        raise ValueError(
            "statistics must be of the same features, got"
            f" {a.extractor} ({a.weights_digest[:8] or 'downloaded'}) and"
            f" {b.extractor} ({b.weights_digest[:8] or 'downloaded'}); make both with one extractor"
        )
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    stats = ({"mu": s.mean, "sigma": s.cov} for s in (a, b))
    return fid_statistics_to_metric(*stats, verbose=False)[KEY_METRIC_FID]


def extractor_weights(stats: FeatureStats, weights: Path | None) -> Path | None:
    """Weights file of the extractor that ``stats`` were made with: as given, or as recorded."""
    if weights is not None or not stats.weights:
        return weights
    recorded = Path(stats.weights)
    if not recorded.is_file():
        raise FileNotFoundError(
            f"the statistics were made with extractor weights {recorded}, which are not there; give"
            " the file with --weights"
        )
    return recorded
