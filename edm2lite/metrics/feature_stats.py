"""Feature statistics of image sets: mean and covariance of their features, and the file of them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from edm2lite.dataset.captions import Captions, as_captions
from edm2lite.messages import one_line
from edm2lite.metrics.extractors import Extractor, preprocessing
from edm2lite.metrics.moments import Array, RunningMoments, check_moments
from edm2lite.metrics.other_statistics import SUFFIXES, chosen, read_other
from edm2lite.strict_json import parse
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
        preprocessing: What was done to the images before the network, "" where the extractor says
            it all. Of DINOv2 it is :data:`edm2lite.metrics.dinov2.PREPROCESSING`.
        is_read: Whether a file says so. The weights file that it names is then not opened.
        captions: Captions of the images, kept with the features; None without.

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
    preprocessing: str = ""
    is_read: bool = field(repr=False, default=False, compare=False)
    captions: Captions | None = field(repr=False, default=None)

    @classmethod
    def of(
        cls,
        moments: RunningMoments,
        extractor: Extractor,
        source: str,
        image_shape: Sequence[int] = (),
        features: NDArray[np.float32] | None = None,
        captions: Captions | None = None,
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
            extractor.preprocessing, captions=captions,
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
            "preprocessing": self.preprocessing,
        }
        tensors = {"mean": torch.from_numpy(self.mean), "cov": torch.from_numpy(self.cov)}
        if self.features is not None:
            tensors["features"] = torch.from_numpy(self.features)
        if self.captions is not None:
            text = bytearray(json.dumps(self.captions.texts).encode())
            tensors["captions"] = torch.frombuffer(text, dtype=torch.uint8)
        return save_tensors(Path(path), tensors, metadata)

    @classmethod
    def load(cls, path: str | Path, extractor: str | None = None) -> FeatureStats:
        """Read what :meth:`save` wrote, or the statistics of another tool.

        Args:
            path: The file: of :meth:`save`; ``.npz`` with ``mu`` and ``sigma``; or ``.pkl`` of
                EDM2.
            extractor: Name of the extractor that made the features. A ``.npz`` of DINOv2 needs it,
                since the file does not say how its features were made, and so does a ``.pkl`` of
                several extractors.

        Raises:
            FileNotFoundError: If there is no file at ``path``.
            ValueError: If the file is damaged or of another kind, its features are of another
                extractor, or of DINOv2 on images that were resized in another way.
        """
        found = cls.load_all(path, extractor)
        if len(found) > 1:
            names = " and ".join(stats.extractor for stats in found)
            raise ValueError(f"{path} has statistics of {names}; name the extractor to choose one")
        return found[0]

    @classmethod
    def load_all(cls, path: str | Path, extractor: str | None = None) -> list[FeatureStats]:
        """All statistics in a file, which are several only in a ``.pkl`` of EDM2; see :meth:`load`.

        Args:
            path: The file.
            extractor: Name of the extractor whose statistics are read. [default: all]

        Raises:
            FileNotFoundError: If there is no file at ``path``.
            ValueError: As :meth:`load`.
        """
        path = Path(path)
        if path.suffix in SUFFIXES:
            return [
                cls(0, s.mean, s.cov, s.extractor, "", "", str(path),
                    preprocessing=preprocessing(s.extractor))
                for s in chosen(path, read_other(path), extractor) if s.extractor
            ]  # fmt: skip
        stats = cls._load_own(path)
        stats.check_preprocessing(str(path))
        if extractor not in (None, stats.extractor):
            raise ValueError(
                f"{path} must hold statistics of {extractor}, it holds those of {stats.extractor}"
            )
        return [stats]

    @classmethod
    def _load_own(cls, path: Path) -> FeatureStats:
        make = "make them with edm2lite evaluate stats"
        if path.is_dir() or (path.is_file() and zipfile.is_zipfile(path)):
            raise ValueError(
                f"{path} must be a file of feature statistics, it is a"
                f" {'folder' if path.is_dir() else 'ZIP'}; if it is a data set, {make} {path} --out"
                f" {path.stem}-stats.safetensors"
            )
        tensors, meta = load_tensors(path)
        if meta.get("format") != FORMAT:
            raise ValueError(f"{path} must hold feature statistics; {make}")
        try:
            stats = cls(
                count=int(meta["count"]),
                mean=tensors["mean"].numpy(),
                cov=tensors["cov"].numpy(),
                extractor=meta["extractor"],
                weights=meta["weights"],
                weights_digest=meta["weights_digest"],
                source=meta["source"],
                image_shape=tuple(int(n) for n in meta.get("image_shape", "").split("x") if n),
                features=tensors["features"].numpy() if "features" in tensors else None,
                preprocessing=meta.get("preprocessing", ""),
                is_read=True,
                captions=_captions(tensors["captions"], path) if "captions" in tensors else None,
            )
            stats._check()
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} must hold feature statistics, but {one_line(error)}; {make}"
            ) from error
        return stats

    def _check(self) -> None:
        """Refuse what no images have."""
        check_moments(self.mean, self.cov)
        if not 0 <= self.count < 2**53:
            raise ValueError(f"its count is {self.count}")
        if self.captions is not None and len(self.captions) != self.count:
            raise ValueError(f"it has {len(self.captions)} captions")
        features = self.features
        if features is None:
            return
        if features.dtype != np.float32 or features.shape != (self.count, len(self.mean)):
            raise ValueError(f"its features are {features.dtype} {list(features.shape)}")
        if not np.isfinite(features).all():
            raise ValueError("its features are not finite")

    @property
    def digest(self) -> str:
        """Hash of the moments."""
        return xxhash.xxh3_64_hexdigest(self.mean.tobytes() + self.cov.tobytes())

    def check_preprocessing(self, name: str) -> None:
        """Refuse statistics of DINOv2 on images that were resized unlike the metric says.

        Args:
            name: Name of the statistics in the message.

        Raises:
            ValueError: If they are such statistics.
        """
        if self.preprocessing != preprocessing(self.extractor):
            raise ValueError(
                f"{name} holds statistics of {self.extractor} on images that were resized unlike"
                " FD-DINOv2 does it (bicubically with antialiasing), as versions up to 0.2 did;"
                " make them again with edm2lite evaluate stats"
            )

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


def _captions(stored: Tensor, path: Path) -> Captions | None:
    """Captions from the UTF-8 text of a JSON list."""
    rows = parse(stored.numpy().tobytes())
    return as_captions(rows, [f"image {i}" for i in range(len(rows))], str(path))


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
    if (
        (a.extractor, a.preprocessing) != (b.extractor, b.preprocessing)
        or a.mean.shape != b.mean.shape
        or len(digests) > 1
    ):
        raise ValueError(
            "statistics must be of the same features, got"
            f" {a.extractor} ({a.weights_digest[:8] or 'downloaded'}, {len(a.mean)}) and"
            f" {b.extractor} ({b.weights_digest[:8] or 'downloaded'}, {len(b.mean)}); make"
            " both with one extractor"
        )
