"""``evaluate``: metrics of a model or of images, each with its interval."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edm2lite import processes
from edm2lite.dataset import ImageDataset
from edm2lite.metrics.feature_stats import FeatureStats
from edm2lite.metrics.image_source import Generation, GivenImages, images_of, names_a_model, origin
from edm2lite.metrics.inputs import MetricInputs
from edm2lite.metrics.measurement import ImageRows
from edm2lite.metrics.metric import ImageMetric, Metric
from edm2lite.metrics.registry import MetricName, find_metrics
from edm2lite.metrics.rows import RowFactory, Rows
from edm2lite.metrics.tails import heavy_words
from edm2lite.models.loading import Model, load
from edm2lite.sampling.compatibility import Guide
from edm2lite.sampling.generation import loaded_guide
from edm2lite.sampling.settings import Sampling

Source = Model | ImageDataset | Tensor | NDArray[np.uint8] | str | Path
"""A model or its name; images as a data set, its name, a folder, a ZIP, or uint8 [N, C, H, W]."""

StatsSource = FeatureStats | str | Path
"""Reference statistics or their file."""


@dataclass(frozen=True)
class Score:
    """The value of one metric.

    Attributes:
        metric: Name of the metric.
        label: Name in tables.
        value: The value.
        interval: 95 % limits of its expectation with other seeds, as many images and the same
            reference; None if the metric has none.
        num: Number of images.
        details: Further numbers by name.
        number_format: Format of the value as text.
        source: What was scored, in words.
        title: Name in results: ``fd(digits)`` of a Fréchet distance in features of that extractor.
        note: What to know of the interval, or "".

    Example:
        >>> Score("precision", "precision", 0.75, None, num=100).texts()
        ('0.7500', '')
    """

    metric: str
    label: str
    value: float
    interval: tuple[float, float] | None
    num: int
    details: dict[str, float] = field(default_factory=dict)
    number_format: str = field(default=".4f", repr=False)
    source: str = field(default="", repr=False)
    title: str = field(default="", repr=False)
    note: str = field(default="", repr=False)

    def texts(self) -> tuple[str, str]:
        """Value and interval as text, the latter "" where there is none.

        Example:
            >>> Score("fid", "FD", 2.5, (2.25, 2.75), 100).texts()
            ('2.5000', '2.2500 to 2.7500')
        """
        kind = self.number_format
        limits = "" if self.interval is None else " to ".join(f"{x:{kind}}" for x in self.interval)
        return f"{self.value:{kind}}", limits


@dataclass(frozen=True)
class _Task:
    """A metric, and the rows that it is computed from."""

    metric: Metric
    key: dict[str, Any]
    factory: RowFactory
    num: int
    num_classes: int = 0
    captions: Sequence[str] | None = None


def evaluate(
    model_or_images: Source,
    reference: StatsSource | Sequence[StatsSource] | None = None,
    metrics: str | Sequence[MetricName] = ("fid",),
    *,
    num: int | None = None,
    sampling: Sampling | None = None,
    guide: Guide | str | Path = None,
    first_seed: int = 0,
    conditions: ImageDataset | str | Path | None = None,
    data: ImageDataset | str | Path | None = None,
    weights: Sequence[str | Path] = (),
    clip: str | Path | None = None,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    cache: str | Path | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[Score]:
    """Metrics of a model, or of images, against reference statistics.

    A model generates images of seeds ``first_seed``, ``first_seed + 1``, ..., its classes in turn.
    Under torchrun, processes share the images; the first one gets the scores, others get none.

    Args:
        model_or_images: A model or its name (file, run, ``RUN@sigma_rel=0.1``); or images: a data
            set or its name, a folder or ZIP, or uint8 [N, C, H, W] with 1 or 3 channels.
            ``"digits"`` is refused where a file or folder of that name exists.
        reference: Statistics or their file (:func:`statistics`, ``.npz`` with mu and sigma), for
            metrics that compare with one; several if metrics need several extractors.
        metrics: Names in :data:`METRICS` or ``module:Class`` of your own, in a list or separated by
            commas; ``prc`` is precision and recall.
        num: Number of images. [default: 50000 of a model, all of a data set]
        sampling: Sampler settings of a model. [default: 32 steps of heun]
        guide: Model that guides, its name, or ``"unconditional"``; with a weight in ``sampling``.
        first_seed: Seed of the first image.
        conditions: Data set whose rows say in turn what the network is told. [default: its classes,
            or the captions of the reference for a model that is told text]
        data: Held-out images or their name, for the metric ``loss``.
        weights: Weights files of the extractors, one for each reference that is a file and was made
            with a weights file: what a file names is not opened. [default: downloaded]
        clip: Folder of a transformers CLIPModel, for the metric ``clip_score``.
        batch_size: Number of images at a time.
        device: Device that computes. [default: the GPU of this process, else the CPU]
        cache: Folder to keep rows in: an interrupted evaluation continues. Needed under torchrun.
        progress: Function that is called with the number of images that are done and of all.

    Returns:
        One score for each metric and each reference that fits it.

    Raises:
        FileNotFoundError: If a model, data set or file is not there.
        ValueError: If a metric is not known, lacks what it needs, or does not fit the images.

    Example:
        >>> from edm2lite.metrics import statistics
        >>> from edm2lite.metrics.digits_classifier import train_classifier
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     weights = Path(folder) / "classifier.safetensors"
        ...     _ = train_classifier(weights, num_epochs=1)
        ...     reference = statistics("digits", "digits", weights=weights)
        ...     scores = evaluate("digits", reference, "fid", num=300)
        >>> [(score.metric, score.num) for score in scores]
        [('fd', 300)]
    """
    if processes.world_size() > 1 and cache is None:
        raise ValueError(
            "under torchrun, evaluate needs a folder that all processes see; give --cache"
        )
    place = torch.device(device) if device is not None else processes.device()
    inputs = MetricInputs.of(reference, data, weights, batch_size, place, clip)
    chosen = [metric for cls in find_metrics(metrics) for metric in cls.create(inputs)]
    source = _opened(model_or_images)
    if isinstance(source, Model):
        generation = Generation(
            sampling or Sampling(), loaded_guide(guide), batch_size, place, first_seed,
            None if conditions is None else images_of(conditions),
            reference_captions=inputs.captions,
        )  # fmt: skip
        tasks = [_task_of_model(metric, source, generation, num) for metric in chosen]
    else:
        images = GivenImages(source, batch_size)
        tasks = [_task_of_images(metric, images, num) for metric in chosen]
    with _folder(cache) as folder:
        scores = _scores(tasks, folder, source.name, progress or (lambda done, total: None))
    return [
        dataclasses.replace(score, source=origin(source, score.num, task.metric.uses_images()))
        for score, task in zip(scores, tasks, strict=False)  # only the first process has scores
    ]


def _opened(source: Source) -> Model | ImageDataset:
    if isinstance(source, Model):
        return source
    if isinstance(source, str | Path) and names_a_model(source):
        return load(source)
    return images_of(source)


def _task_of_model(metric: Metric, model: Model, generation: Generation, num: int | None) -> _Task:
    key, factory = metric.rows_of(model, generation)
    count = metric.num_images(num)
    if not metric.uses_images():
        return _Task(metric, key, factory, count)
    num_classes = generation.num_classes(model)
    return _Task(metric, key, factory, count, num_classes, generation.captions(model, count))


def _task_of_images(metric: Metric, images: GivenImages, num: int | None) -> _Task:
    available, name = len(images.dataset), images.dataset.name
    if not isinstance(metric, ImageMetric):
        raise ValueError(f"{metric.name} is a metric of a model, {name} holds images")
    if num is not None and num > available:
        raise ValueError(f"{name} holds {available} images, got --num {num}; give a smaller number")
    count = available if num is None else num
    return _Task(metric, *images.rows(metric), count, captions=images.captions(count))


def _scores(
    tasks: Sequence[_Task], folder: Path, name: str, progress: Callable[[int, int], object]
) -> list[Score]:
    """Make the rows, those that several metrics share once; the first process gets the scores."""
    shared: dict[str, list[_Task]] = {}
    for task in tasks:
        shared.setdefault(json.dumps([task.key, task.num], sort_keys=True), []).append(task)
    total, done = sum(group[0].num for group in shared.values()), 0

    def count(num: int) -> None:
        nonlocal done
        done += num
        progress(done, total)

    scores: dict[Metric, Score] = {}
    for first, *others in shared.values():
        rows = Rows(folder, first.key, processes.rank(), processes.world_size())
        rows.fill(first.num, first.factory, count)
        if processes.rank() == 0:
            parts = functools.partial(rows.parts, first.num)
            table = ImageRows(parts, first.num, first.num_classes, name, first.captions)
            scores |= {task.metric: _score(task.metric, table) for task in (first, *others)}
    return [scores[task.metric] for task in tasks if task.metric in scores]


def _score(metric: Metric, rows: ImageRows) -> Score:
    measured, interval, note = metric.measure(rows), None, ""
    if (influences := measured.influences) is not None:
        variance = float(metric.covariance([influences])[0, 0])
        interval = metric.limits(measured.value, variance, influences)
        note = heavy_words(metric.title) if metric.is_heavy(influences) else ""
    return Score(
        metric.name, metric.label, measured.value, interval, rows.num, dict(measured.details),
        metric.number_format, title=metric.title, note=note,
    )  # fmt: skip


@contextlib.contextmanager
def _folder(cache: str | Path | None) -> Iterator[Path]:
    if cache is not None:
        yield Path(cache)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
