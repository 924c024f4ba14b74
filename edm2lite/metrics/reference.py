"""Feature statistics of a data set: what images are compared with."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edm2lite import processes
from edm2lite.claim import claim_file, claim_together
from edm2lite.dataset import ImageDataset
from edm2lite.metrics.extractors import Extractor, open_extractor
from edm2lite.metrics.feature_stats import FeatureStats
from edm2lite.metrics.image_source import GivenImages, images_of
from edm2lite.metrics.moments import RunningMoments
from edm2lite.metrics.other_statistics import SUFFIXES
from edm2lite.tensorfile import read_header

Progress = Callable[[int, int], object]


def statistics(
    dataset: ImageDataset | Tensor | NDArray[np.uint8] | str | Path,
    extractor: Extractor | str = "inception-v3-compat",
    *,
    weights: str | Path | None = None,
    keep_features: bool = False,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> FeatureStats:
    """Feature statistics of a data set, by this process alone.

    Args:
        dataset: Images: a data set or its name, a folder or ZIP, or uint8 [N, C, H, W].
        extractor: The feature extractor or its name, see :func:`open_extractor`.
        weights: File with the weights of an extractor that is named. [default: downloaded]
        keep_features: Whether to keep the features too, which kid, precision and recall need.
        batch_size: Number of images at a time.
        device: Device that computes. [default: the GPU of this process, else the CPU]
        progress: Function that is called with the number of images that are done and of all.

    Raises:
        FileNotFoundError: If there is no such data set or weights file.
        ValueError: If the images differ in size, are not pixels, or are fewer than two.

    Example:
        >>> corner = Extractor("corner", None, lambda x: x[:, 0, 0, :2].float(), "")
        >>> images = torch.tensor([0, 4], dtype=torch.uint8)[:, None, None, None]
        >>> statistics(images.expand(2, 1, 8, 8), corner).mean
        array([2., 2.])
    """
    images = GivenImages(images_of(dataset), batch_size)
    opened = _extractor(extractor, weights, device)
    moments, kept = _share(images, opened, keep_features, progress)
    return _stats(images, opened, moments, kept)


def write_statistics(
    dataset: ImageDataset | str | Path,
    out: str | Path,
    extractor: Extractor | str = "inception-v3-compat",
    *,
    weights: str | Path | None = None,
    keep_features: bool = False,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> FeatureStats | None:
    """Write the feature statistics of a data set to a file; under torchrun, by all processes.

    Args:
        dataset: Images: a data set or its name, a folder or ZIP. Or statistics of another tool,
            ``.npz`` or ``.pkl`` as :meth:`FeatureStats.load` reads them, to be written as they are.
        out: The file.
        extractor: As in :func:`statistics`, and so are the others. Of statistics of another tool,
            the extractor that made them.
        weights: File with the weights of an extractor that is named.
        keep_features: Whether to keep the features too; for one process only.
        batch_size: Number of images at a time.
        device: Device that computes.
        progress: Function that is called with the number of this process's images that are done,
            and of all of them.

    Returns:
        The statistics in the first process, None in the others.

    Raises:
        ValueError: As :func:`statistics`, if several processes are to keep features, if the
            statistics of another tool are of another extractor, or if another command writes
            ``out``.

    Example:
        >>> import tempfile
        >>> corner = Extractor("corner", None, lambda x: x[:, 0, 0, :2].float(), "")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     stats = write_statistics("digits", Path(folder) / "stats.safetensors", corner)
        ...     FeatureStats.load(Path(folder) / "stats.safetensors").count
        1797
    """
    rank, world = processes.rank(), processes.world_size()
    if isinstance(dataset, str | Path) and Path(dataset).suffix in SUFFIXES:
        if keep_features or weights is not None:
            raise ValueError(
                f"{dataset} holds statistics without images, to be written as they are; leave out"
                " --features and --weights"
            )
        name = extractor if isinstance(extractor, str) else extractor.name
        return _converted(Path(dataset), Path(out), name) if rank == 0 else None
    if keep_features and world > 1:
        raise ValueError("--features keeps features of one process; leave torchrun or --features")
    with claim_together(claim_file, Path(out)):
        images = GivenImages(images_of(dataset), batch_size)
        opened = _extractor(extractor, weights, device)
        moments, kept = _share(images, opened, keep_features, progress)
        if world > 1:
            data, features = images.dataset, f"{opened.name} {opened.weights_digest}"
            key = f"{data.name} {len(data)} {features} {batch_size}"
            folder = Path(out).with_name(f"{Path(out).name}.parts")
            moments = _gathered(moments, folder, rank, world, key)
        if rank > 0:
            return None
        stats = _stats(images, opened, moments, kept)
        stats.save(out)
        return stats


def _converted(source: Path, out: Path, extractor: str) -> FeatureStats:
    stats = FeatureStats.load(source, extractor)
    stats.save(out)
    return stats


def _extractor(
    extractor: Extractor | str, weights: str | Path | None, device: torch.device | str | None
) -> Extractor:
    if isinstance(extractor, Extractor):
        return extractor
    return open_extractor(extractor, weights, processes.device() if device is None else device)


def _share(
    images: GivenImages, extractor: Extractor, keep: bool, progress: Progress | None
) -> tuple[RunningMoments, list[NDArray[np.float32]]]:
    """Moments of this process's batches, and their features if they are to be kept."""
    num, batch = len(images.dataset), images.batch_size
    starts = range(processes.rank() * batch, num, processes.world_size() * batch)
    parts = [range(begin, min(begin + batch, num)) for begin in starts]
    moments, kept, done = RunningMoments(), [], 0
    for part in parts:
        features = extractor.features(images.images(part))
        moments.add(features)
        if keep:
            kept.append(features.astype(np.float32))
        done += len(part)
        if progress is not None:
            progress(done, sum(map(len, parts)))
    return moments, kept


def _stats(
    images: GivenImages,
    extractor: Extractor,
    moments: RunningMoments,
    kept: list[NDArray[np.float32]],
) -> FeatureStats:
    features = np.concatenate(kept) if kept else None
    name, shape = images.dataset.name, images.dataset.image_shape
    captions = images.dataset.captions if kept else None
    return FeatureStats.of(moments, extractor, name, shape, features, captions)


def _gathered(own: RunningMoments, folder: Path, rank: int, world: int, key: str) -> RunningMoments:
    """On the first process the sum over all, added in their order; through files."""
    if rank > 0:
        own.save(folder / f"{rank}.safetensors", {"key": key})
        return own
    for other in range(1, world):
        path = folder / f"{other}.safetensors"
        while not path.is_file() or read_header(path).metadata["key"] != key:
            time.sleep(0.02)
        own.merge(RunningMoments.load(path))
    shutil.rmtree(folder)
    return own
