"""What a sweep is asked to measure, and the rules that its options follow."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edm2lite.claim import Claim, claim_file, claim_together
from edm2lite.dataset import ImageDataset
from edm2lite.ema.decays import NamedDecay
from edm2lite.ema.targets import MAX_ERROR
from edm2lite.metrics.feature_stats import FeatureStats
from edm2lite.metrics.metric import Metric
from edm2lite.metrics.registry import find_metric
from edm2lite.sampling.settings import Sampling
from edm2lite.sweep.ledger import LEDGER


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What a sweep measures: EMA lengths, along with at most one other axis.

    Attributes:
        run: Folder of the training run.
        sigma_rel: EMA lengths to measure.
        decay: Decays of the learning rate to emulate, such as ``cosine:0.2``, in place of lengths.
        search: Whether to find the best length instead, in few evaluations.
        span: Shortest and longest length of a search.
        metric: Name in :data:`edm2lite.metrics.METRICS`, ``module:Class``, or a class.
        ref: Reference statistics or their file, for metrics that compare with one.
        data: Held-out data set or its name, for the metric ``loss``.
        conditions: Data set whose rows say in turn what the network is told. [default: its classes]
        num: Number of images per length. [default: 50000, or all of ``data``]
        sampling: Sampler settings, without the weight of guidance.
        first_seed: Seed of the first image; others repeat the experiment.
        at: Ends of the averages in images. [default: the latest snapshot]
        guidance: Weights of guidance.
        guide: Model that guides, or "unconditional".
        guide_sigma_rel: EMA lengths of the guide, which is then a run, or RUN@nimg=N.
        max_error: Largest acceptable predicted error of a rebuilt average; larger ones are refused.
        groups: Groups of tensors to sweep alone, the others held at the best length, or "all".
        batch_size: Number of images at a time.
        weights: Weights file of the reference's extractor, if it was made with one.
        clip: Folder of a transformers CLIPModel, for the metric ``clip_score``.
        device: Device that computes. [default: the GPU of this process, else the CPU]
        out: Folder of the ledger. [default: the run]

    Raises:
        ValueError: If options do not go together.

    Example:
        >>> options = SweepOptions(run=Path("runs/a"), sigma_rel=(0.2, 0.1), ref="a.safetensors")
        >>> options.lengths
        (0.1, 0.2)
    """

    run: Path
    sigma_rel: Sequence[float] = ()
    decay: Sequence[str] = ()
    search: bool = False
    span: tuple[float, float] = (0.02, 0.25)
    metric: str | type[Metric] = "fid"
    ref: FeatureStats | str | Path | None = None
    data: ImageDataset | str | Path | None = None
    conditions: ImageDataset | str | Path | None = None
    num: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    first_seed: int = 0
    at: Sequence[int] = ()
    guidance: Sequence[float] = (1.0,)
    guide: str | None = None
    guide_sigma_rel: Sequence[float] = ()
    max_error: float = MAX_ERROR
    groups: str | Sequence[str] = ()
    batch_size: int = 64
    weights: str | Path | None = None
    clip: str | Path | None = None
    device: torch.device | str | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        self._check_metric()
        if (bool(self.sigma_rel), bool(self.decay), self.search).count(True) != 1:
            raise ValueError("one of --sigma-rel, --decay and --search must be given, and not two")
        object.__setattr__(self, "decay", [str(NamedDecay.parse(name)) for name in self.decay])
        guided = any(weight != 1 for weight in self.guidance)
        if guided != (self.guide is not None) or (self.guide_sigma_rel and not guided):
            raise ValueError(
                "--guide and a weight of --guidance other than 1 go together, and --guide-sigma-rel"
                " needs both"
            )
        several = sum(len(values) > 1 for values in (self.at, self.guidance, self.guide_sigma_rel))
        if (several and (self.search or self.groups)) or several > 1:
            raise ValueError(
                "a table has two axes: next to the length, give a list for one of --at, --guidance,"
                " --guide-sigma-rel, and for none with --search or --groups"
            )
        if self.groups and not self.sigma_rel:
            raise ValueError("--groups takes its lengths from --sigma-rel, and from nothing else")

    def _check_metric(self) -> None:
        kind = self.metric_class
        for option, value, fits in (
            ("--ref", self.ref, kind.needs in ("reference", "reference features")),
            ("--data", self.data, not kind.uses_images()),
            ("--clip", self.clip, kind.needs == "CLIP"),
        ):
            if fits != (value is not None):
                verb = "takes" if fits else "does not take"
                raise ValueError(f"--metric {kind.name} {verb} {option}")
        guided = self.guide is not None or any(weight != 1 for weight in self.guidance)
        if not kind.uses_images() and (guided or self.conditions is not None):
            raise ValueError(
                f"--metric {kind.name} is of the network alone; leave out --guide, --guidance and"
                " --conditions"
            )

    @property
    def metric_class(self) -> type[Metric]:
        """Class of the metric."""
        return find_metric(self.metric)

    def claim(self) -> AbstractContextManager[Claim | None]:
        """The right to write the ledger and the tables, for all processes that torchrun started.

        A run may go on training meanwhile: its own files are not claimed.

        Raises:
            ValueError: If another process writes them.
        """
        return claim_together(claim_file, self.folder / LEDGER)

    @property
    def lengths(self) -> tuple[float, ...]:
        """EMA lengths to plan for, ascending: all, or the ends of the search; none for decays."""
        return () if self.decay else tuple(sorted(set(self.sigma_rel or self.span)))

    @property
    def planned(self) -> tuple[float, ...]:
        """Lengths whose predicted error is checked: all, or a grid over the range of a search."""
        if self.search:
            return tuple(float(f"{s:.4g}") for s in np.geomspace(*self.span, 25))
        return self.lengths

    @property
    def folder(self) -> Path:
        """Folder of the ledger."""
        return self.run if self.out is None else self.out

    def title(self, num: int, ends: Sequence[int], features: str = "") -> str:
        """What is measured and how, in one line.

        Args:
            num: Number of images.
            ends: Ends of the averages in images.
            features: Name of the extractor, where the name of the metric does not say it.
        """
        trained = f"{ends[0]:,} training images" if len(ends) == 1 else "several training times"
        if not self.metric_class.uses_images():
            return f"{num} images of {_name(self.data)}, {trained}"
        guided = f"guided by {self.guide}" if self.guide else ""
        # where the reference lies is no part of the result
        reference = Path(_name(self.ref)).name if self.ref is not None else ""
        reference += f" ({features})" if features else ""
        steps = f"{self.sampling.num_steps} steps"
        parts = (f"{num} images", steps, reference, guided, trained)
        return ", ".join(part for part in parts if part)


def _name(source: Any) -> str:
    """Name of a data set or of statistics that may be given as such."""
    if isinstance(source, ImageDataset):
        return source.name
    return source.source if isinstance(source, FeatureStats) else str(source)
