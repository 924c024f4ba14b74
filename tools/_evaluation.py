"""What ``edm2lite evaluate`` does once it knows what is asked for."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from edm2lite import processes

from ._cli import progress, table

if TYPE_CHECKING:
    from torch import Tensor

    from edm2lite.dataset import ImageDataset
    from edm2lite.metrics.extractors import Extractor
    from edm2lite.metrics.fidelity import FeatureStats
    from edm2lite.metrics.moments import Moments
    from edm2lite.metrics.rows import Make, Rows


def write_stats(
    source: str, out: Path, name: str, weights: Path | None, keep: bool, batch: int
) -> None:
    """Statistics of a data set, in one pass."""
    from edm2lite.metrics.extractors import open_extractor
    from edm2lite.metrics.fidelity import FeatureStats
    from edm2lite.metrics.moments import Moments

    rank, world = (processes.rank(), processes.world_size())
    if keep and world > 1:
        raise ValueError("--features keeps features of one process; leave torchrun or --features")
    dataset = _images(source)
    extractor = open_extractor(name, weights, processes.device())
    moments, features = Moments(), []
    starts = range(rank * batch, len(dataset), world * batch)
    for begin in progress(starts, desc="features", unit="batch", disable=rank > 0):
        rows = extractor.features(_read(dataset, range(begin, min(begin + batch, len(dataset)))))
        moments.add(rows)
        if keep:
            features.append(rows.astype(np.float32))
    if world > 1:
        key = f"{source} {len(dataset)} {name} {extractor.weights_digest} {batch}"
        moments = _gathered(moments, out.with_name(f"{out.name}.parts"), rank, world, key)
    if rank == 0:
        kept = np.concatenate(features) if keep else None
        stats = FeatureStats.of(moments, extractor, source, dataset.image_shape, kept)
        stats.save(out)
        click.echo(f"{out}: {stats.count} images, {len(stats.mean)} features ({name})")


def _gathered(own: Moments, folder: Path, rank: int, world: int, key: str) -> Moments:
    """On rank 0 the sum over ranks, added in their order; through files, as images are shared."""
    from edm2lite.metrics.moments import Moments
    from edm2lite.tensorfile import read_header

    if rank > 0:
        own.save(folder / f"{rank}.safetensors", {"key": key})
        return own
    for other in range(1, world):
        path = folder / f"{other}.safetensors"
        while not path.is_file() or read_header(path).metadata["key"] != key:
            time.sleep(0.02)
        own.merge(Moments.load(path))
    shutil.rmtree(folder)
    return own


@dataclass(frozen=True)
class Scoring:
    """Metrics of a model or images, see ``edm2lite evaluate --help``."""

    source: str
    num: int | None
    steps: int
    batch: int
    cache: Path | None

    def print(self, refs: Sequence[Path], weights: Sequence[Path], names: Sequence[str]) -> None:
        """Print one line per figure."""
        from edm2lite.metrics.extractors import open_extractor
        from edm2lite.metrics.fidelity import FeatureStats, extractor_weights

        rank, world = (processes.rank(), processes.world_size())
        if world > 1 and self.cache is None:
            raise click.UsageError("under torchrun give --cache, a folder that all processes see")
        opened = []
        for i, path in enumerate(refs):
            reference = FeatureStats.load(path)
            file = extractor_weights(reference, weights[i] if weights else None)
            wanted = [name for name in names if _belongs(name, reference)]
            if {"kid", "prc"} & set(wanted) and reference.features is None:
                raise ValueError(
                    f"kid and prc need features in {path}; make it with edm2lite evaluate stats"
                    " --features"
                )
            opened.append(
                (reference, open_extractor(reference.extractor, file, processes.device()), wanted)
            )
        missing = set(names) - {name for _, _, wanted in opened for name in wanted}
        if missing:
            kind = "dinov2-vit-l-14" if "fd_dinov2" in missing else "inception-v3-compat"
            raise ValueError(f"{min(missing)} needs a --ref made with --extractor {kind}")
        lines: list[list[str]] = []
        with tempfile.TemporaryDirectory() as scratch:
            for reference, extractor, wanted in opened:
                rows, num = self._rows(self.cache or Path(scratch), extractor, reference)
                if rank == 0 and wanted:
                    classes = rows.key.get("classes", 0)
                    lines += _figures(rows, num, extractor, reference, wanted, self.source, classes)
        if rank == 0:
            click.echo(table({"metric": "", "value": "", "": ""}, lines))

    def _rows(
        self, folder: Path, extractor: Extractor, reference: FeatureStats
    ) -> tuple[Rows, int]:
        """Features of the first images, made or found."""
        from edm2lite.metrics.rows import Rows

        key, make, num = self._make(extractor, reference)
        rank, world = (processes.rank(), processes.world_size())
        rows = Rows(folder, key, rank, world)
        with progress(total=num, desc=extractor.name, unit="img", disable=rank > 0) as bar:
            rows.fill(num, make, bar.update)
            if rank == 0:
                rows.wait(num, bar.update)
        return rows, num

    def _make(
        self, extractor: Extractor, reference: FeatureStats
    ) -> tuple[dict[str, Any], Make, int]:
        import torch

        from edm2lite.models.loading import load
        from edm2lite.sampling.settings import Sampling
        from edm2lite.sweep.metrics import GeneratedFeatures

        if _is_model(self.source):
            sampling = Sampling(num_steps=self.steps)
            features = GeneratedFeatures(
                extractor, sampling, self.batch, processes.device(), reference.check_images
            )
            return *features.of(load(self.source), None, 1.0), self.num or 50_000
        dataset = _images(self.source)
        reference.check_images(self.source, dataset.image_shape)
        num = len(dataset) if self.num is None else self.num
        if num > len(dataset):
            raise ValueError(f"{self.source} holds {len(dataset)} images, --num asks for {num}")

        def make(wanted: range) -> tuple[Tensor, None]:
            parts = [wanted[i : i + self.batch] for i in range(0, len(wanted), self.batch)]
            rows = [extractor.features(_read(dataset, part)) for part in parts]
            return torch.from_numpy(np.concatenate(rows)).float(), None

        path = Path(self.source)
        changed = path.stat().st_mtime_ns if path.exists() else 0
        key = {
            "source": self.source, "changed": changed, "of": len(dataset), "batch": self.batch,
            "extractor": extractor.name, "digest": extractor.weights_digest,
        }  # fmt: skip
        return key, make, num


def _belongs(metric: str, reference: FeatureStats) -> bool:
    return (metric == "fd_dinov2") == reference.extractor.startswith("dinov2")


def _figures(
    rows: Rows, num: int, extractor: Extractor, reference: FeatureStats, names: Sequence[str],
    source: str, classes: int,
) -> list[list[str]]:  # fmt: skip
    from edm2lite.metrics.fidelity import (
        FeatureStats,
        frechet_distance,
        kernel_distance,
        precision_recall,
    )
    from edm2lite.metrics.influence import covariance, influences, moments_of, square_root
    from edm2lite.metrics.interval import interval

    lines = []
    for name in names:
        if name in ("kid", "prc"):
            made = np.concatenate([part.astype(np.float32) for part in rows.parts(num)])
            assert reference.features is not None
            if name == "kid":
                mean, std = kernel_distance(made, reference.features)
                lines.append(["kid", f"{mean:.6f}", f"standard deviation over subsets {std:.6f}"])
            else:
                for label, value in zip(
                    ("precision", "recall"), precision_recall(made, reference.features), strict=True
                ):
                    lines.append([label, f"{value:.4f}", ""])
            continue
        moments = moments_of(partial(rows.parts, num), num)
        stats = FeatureStats.of(moments[0], extractor, source)
        value = frechet_distance(stats, reference)
        root = square_root(reference.cov)
        spread = influences(partial(rows.parts, num), moments, reference.mean, root, classes)
        low, high = interval(np.array([value]), covariance([spread]))
        lines.append([name, f"{value:.4f}", f"{low[0]:.4f} to {high[0]:.4f}"])
    return lines


def _is_model(source: str) -> bool:
    path = Path(source)
    if source == "digits":  # the data set of that name, as everywhere
        return False
    if not path.exists():
        return "@" in source
    return path.suffix == ".safetensors" or (path / "last.safetensors").is_file()


def _images(source: str) -> ImageDataset:
    from edm2lite.dataset import open_dataset

    dataset = open_dataset(source)
    if dataset.encoder is not None or dataset.image_shape[0] not in (1, 3):
        raise ValueError(
            f"features are of images with 1 or 3 channels, {source} holds"
            f" {'latents' if dataset.encoder else f'{dataset.image_shape[0]} channels'}"
        )
    if dataset.sizes is not None and len(np.unique(dataset.sizes, axis=0)) > 1:
        raise ValueError(
            f"{source} must hold images of one size; make them so by edm2lite dataset convert"
        )
    return dataset


def _read(dataset: ImageDataset, indices: range) -> Tensor:
    import torch

    return torch.from_numpy(dataset.images(indices))
