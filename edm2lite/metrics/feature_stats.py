"""Feature statistics of image sets: mean and covariance of their features, and the file of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from edm2lite.metrics.extractors import Extractor
from edm2lite.metrics.moments import Array, RunningMoments
from edm2lite.tensorfile import load_tensors, save_tensors

FORMAT = "edm2lite.stats/1"


@dataclass(frozen=True)
class FeatureStats:
    """Moments of the features of a set of images.

    Attributes:
        count: Number of images, 0 if unknown.
        mean: [F] float64.
        cov: [F, F] float64, with the divisor count - 1.
        extractor: Name of the feature extractor, see :func:`edm2lite.metrics.open_extractor`.
        weights: Path of the extractor's weights file, or "".
        weights_digest: SHA-256 of that file, or "".
        source: Name of the images.
        image_shape: (C, H, W) of the images, () if unknown.
        features: [count, F] float32 for the metrics that need them, or None.

    Example:
        >>> import tempfile
        >>> stats = FeatureStats(100, np.zeros(2), np.eye(2), "digits", "", "", "made up")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     FeatureStats.load(stats.save(Path(folder) / "stats.safetensors")).source
        'made up'
    """

    count: int
    mean: Array = field(repr=False)
    cov: Array = field(repr=False)
    extractor: str
    weights: str
    weights_digest: str
    source: str
    image_shape: tuple[int, ...] = ()
    features: NDArray[np.float32] | None = field(repr=False, default=None)

    @classmethod
    def of(
        cls,
        moments: RunningMoments,
        extractor: Extractor,
        source: str,
        image_shape: Sequence[int] = (),
        features: NDArray[np.float32] | None = None,
    ) -> FeatureStats:
        """Statistics from moments.

        Raises:
            ValueError: If there are fewer than two images.
        """
        if moments.count < 2:
            raise ValueError(f"statistics need at least 2 images, {source} gave {moments.count}")
        weights = "" if extractor.weights is None else str(extractor.weights)
        return cls(
            moments.count, moments.mean, moments.cov, extractor.name, weights,
            extractor.weights_digest, source, tuple(image_shape), features,
        )  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """Write to a safetensors file, atomically."""
        metadata = {
            "format": FORMAT,
            "count": str(self.count),
            "extractor": self.extractor,
            "weights": self.weights,
            "weights_digest": self.weights_digest,
            "source": self.source,
            "image_shape": "x".join(map(str, self.image_shape)),
        }
        tensors = {"mean": torch.from_numpy(self.mean), "cov": torch.from_numpy(self.cov)}
        if self.features is not None:
            tensors["features"] = torch.from_numpy(self.features)
        return save_tensors(Path(path), tensors, metadata)

    @classmethod
    def load(cls, path: str | Path) -> FeatureStats:
        """Read what :meth:`save` wrote, or ``.npz`` statistics (``mu``, ``sigma``) of other tools.

        Raises:
            FileNotFoundError: If there is no file at ``path``.
            ValueError: If the file is damaged or of another kind.
        """
        if Path(path).suffix == ".npz":
            return _load_npz(Path(path))
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
            image_shape=tuple(int(n) for n in meta.get("image_shape", "").split("x") if n),
            features=tensors["features"].numpy() if "features" in tensors else None,
        )

    @property
    def digest(self) -> str:
        """Hash of the moments."""
        return xxhash.xxh3_64_hexdigest(self.mean.tobytes() + self.cov.tobytes())

    def check_images(self, name: str, shape: Sequence[int]) -> None:
        """Refuse images of another size or number of channels than those of the reference.

        Args:
            name: Name of the images in the message.
            shape: Their (C, H, W).

        Raises:
            ValueError: If the shapes differ.
        """
        if self.image_shape and tuple(shape) != self.image_shape:
            expected, found = ("x".join(map(str, s)) for s in (self.image_shape, shape))
            raise ValueError(
                f"images must be like those of the reference ({self.source}: {expected}), {name}"
                f" has {found}; make reference statistics of such images"
            )


def _load_npz(path: Path) -> FeatureStats:
    if not path.is_file():
        raise FileNotFoundError(f"no statistics at {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, cov = (np.asarray(file[key], np.float64) for key in ("mu", "sigma"))
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{path} must hold arrays mu and sigma: {error}") from error
    if cov.shape != (len(mean), len(mean)):
        raise ValueError(f"{path} must hold mu [F] and sigma [F, F], has {mean.shape}, {cov.shape}")
    names = {2048: "inception-v3-compat", 1024: "dinov2-vit-l-14"}
    if len(mean) not in names:
        raise ValueError(
            f"{path} must hold statistics of 2048 (Inception) or 1024 (DINOv2) features, has"
            f" {len(mean)}; make statistics of other extractors with edm2lite evaluate stats"
        )
    return FeatureStats(0, mean, cov, names[len(mean)], "", "", str(path))


def feature_stats(batches: Iterable[Tensor], extractor: Extractor, source: str) -> FeatureStats:
    """Statistics of batches of images, in one pass.

    Args:
        batches: Images, uint8 [N, C, H, W] each.
        extractor: The feature extractor.
        source: Name of the images in the result.

    Raises:
        ValueError: If there are fewer than two images.

    Example:
        >>> corner = Extractor("corner", None, lambda x: x[:, 0, 0, :2].float(), "")
        >>> images = torch.zeros(6, 1, 8, 8, dtype=torch.uint8)
        >>> feature_stats(images.split(4), corner, "black").count
        6
    """
    moments, shape = RunningMoments(), torch.Size()
    for images in batches:
        moments.add(extractor.features(images))
        shape = images.shape[1:]
    return FeatureStats.of(moments, extractor, source, shape)


def check_same_features(a: FeatureStats, b: FeatureStats) -> None:
    """Refuse statistics that cannot be compared.

    Raises:
        ValueError: If the statistics come from different extractors.
    """
    digests = {s.weights_digest for s in (a, b)} - {""}  # "" may be the very same, downloaded
    if a.extractor != b.extractor or a.mean.shape != b.mean.shape or len(digests) > 1:
        raise ValueError(
            "statistics must be of the same features, got"
            f" {a.extractor} ({a.weights_digest[:8] or 'downloaded'}, {len(a.mean)}) and"
            f" {b.extractor} ({b.weights_digest[:8] or 'downloaded'}, {len(b.mean)}); make"
            " both with one extractor"
        )


def extractor_weights(stats: FeatureStats, weights: Path | None) -> Path | None:
    """Weights file of the extractor that made ``stats``.

    Args:
        stats: The statistics.
        weights: A file to use instead of the recorded one, or None.

    Raises:
        FileNotFoundError: If the recorded file is not there.
    """
    if weights is not None or not stats.weights:
        return weights
    recorded = Path(stats.weights)
    if not recorded.is_file():
        raise FileNotFoundError(
            f"the statistics were made with extractor weights {recorded}, which are not there; give"
            " the file with --weights"
        )
    return recorded
