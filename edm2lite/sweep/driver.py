"""``sweep_ema``: EMA lengths of a run against a metric, and what comes of it."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edm2lite import processes
from edm2lite.dataset import ImageDataset
from edm2lite.ema import SnapshotInfo, plan_targets
from edm2lite.metrics.feature_stats import FeatureStats
from edm2lite.metrics.image_source import Generation, images_of
from edm2lite.metrics.inputs import MetricInputs
from edm2lite.metrics.interval import Verdict, alike, judge
from edm2lite.metrics.metric import Metric
from edm2lite.metrics.registry import MetricName
from edm2lite.metrics.tails import heavy_words
from edm2lite.models.encoders import encoder_from_json
from edm2lite.sweep.cells import Cell, Point, best, best_average, varying, write_csv
from edm2lite.sweep.commands import page_texts
from edm2lite.sweep.grid import grid_cells, group_names, grouped, raw_cells, searched
from edm2lite.sweep.ledger import Ledger, Setting
from edm2lite.sweep.measure import Measurer
from edm2lite.sweep.options import SweepOptions
from edm2lite.sweep.page import write_page
from edm2lite.sweep.table import cell_words, curve_words, markdown_table, write_report


@dataclass(frozen=True)
class Sweep:
    """What a sweep has found.

    Attributes:
        options: What was asked for.
        points: The measured points: rows of the table.
        notes: What a search did, in words, or "".
        measurer: The measurer with its ledger, to measure more.
    """

    options: SweepOptions
    points: list[Point]
    notes: str
    measurer: Measurer = field(repr=False)

    @property
    def metric(self) -> type[Metric]:
        """Class of the metric. Of a Fréchet distance it says whether that is FID."""
        return type(self.measurer.metric)

    @property
    def best(self) -> Point:
        """The point of the best value; it ``is_raw`` if it is of the raw weights."""
        return best(self.compared, self.metric.lower_is_better)

    @property
    def best_average(self) -> Point:
        """The averaged point of the best value."""
        return best_average(self.points, self.metric.lower_is_better)

    @property
    def final(self) -> list[Point]:
        """The averaged points of the most images, by ascending length; decays as they came."""
        num = self.best_average.num
        points = [p for p in self.points if p.num == num and not p.is_raw]
        return sorted(points, key=lambda p: p.sigma_rel or 0)

    @property
    def compared(self) -> list[Point]:
        """The points of the verdict: the raw weights, if they were measured, and :attr:`final`."""
        final = self.final
        raw = [p for p in self.points if p.is_raw and p.num == final[0].num]
        return [*raw, *final]

    @property
    def alike(self) -> list[Point] | None:
        """The points that cannot be told apart from the best one, which is among them.

        None if the metric has no intervals, so that nothing can be told apart.
        """
        values, covariance = self._joint
        if covariance is None:
            return None
        return [self.compared[i] for i in alike(values, covariance, self.metric.lower_is_better)]

    @functools.cached_property
    def verdict(self) -> Verdict:
        """The verdict on :attr:`compared` as a curve over the length."""
        lengths, final = [p.sigma_rel for p in self.compared], self.final
        whole = judge(lengths, *self._joint, self.metric.lower_is_better)
        if len(final) == len(lengths):
            return whole
        # the place of the optimum is that of the averages, and depends on them alone
        joint = self.measurer.joint([p.cell for p in final], final[0].num)
        curve = judge([p.sigma_rel for p in final], *joint, self.metric.lower_is_better)
        return dataclasses.replace(curve, best=whole.best, alike=whole.alike)

    @property
    def words(self) -> str:
        """The verdict in words."""
        points, metric = self.compared, self.metric
        if varying(points) == ["sigma_rel"]:
            text = curve_words(points, self.verdict, metric)
        else:
            equal = self.alike
            indices = None if equal is None else [points.index(point) for point in equal]
            text = cell_words(points, indices, metric)
        cells, num = [p.cell for p in points], points[0].num
        heavy = self.measurer.have_heavy_tails(cells, num)
        warning = heavy_words(f"some of these {metric.label} values") if heavy else ""
        return " ".join(part for part in (text, warning, self.notes) if part)

    @property
    def title(self) -> str:
        """What was measured and how, in one line."""
        metric, features = self.measurer.metric, ""
        if metric.title != metric.name:
            features = self.measurer.setting.protocol.get("extractor", "")
        ends = sorted({p.nimg for p in self.final})
        return self.options.title(self.best.num, ends, features)

    @property
    def name(self) -> str:
        """Name of the files without their endings.

        It is ``sweep``, unless the first sweep in the folder was of another metric: then it is
        ``sweep-METRIC``, such as ``sweep-kid``, and the files of both stay.
        """
        ledger, setting = self.measurer.ledger, self.measurer.setting
        if ledger.first is None or ledger.first.measures_like(setting):
            return "sweep"
        return f"sweep-{re.sub('[^A-Za-z0-9_]+', '-', self.measurer.metric.title).strip('-')}"

    def table(self) -> str:
        """The points as a Markdown table."""
        return markdown_table(self.points, self.metric)

    def images(self) -> dict[Cell, NDArray[np.uint8]]:
        """The first images of :attr:`compared` by cell, [n, C, H, W], the same seeds in all."""
        ledger, setting = self.measurer.ledger, self.measurer.setting
        kept = {p.cell: ledger.images(setting, p.cell, p.num) for p in self.compared}
        return {cell: images for cell, images in kept.items() if images is not None}

    def write(self, folder: str | Path | None = None, *, picture: bool = True) -> Path:
        """Write ``sweep.csv``, ``sweep.md`` and ``sweep.html``; one process does it.

        In a folder with the sweep of another metric, they are named after :attr:`name`.

        Args:
            folder: Where to. [default: the folder of the ledger]
            picture: Whether the report shows ``sweep.png``, which the command draws.

        Returns:
            The page, ``sweep.html``.
        """
        out = self.options.folder if folder is None else Path(folder)
        name, metric, words, title = self.name, self.metric, self.words, self.title
        write_csv(out / f"{name}.csv", self.points)
        shown = f"{name}.png" if picture else ""
        write_report(out / f"{name}.md", self.points, metric, words, title, shown)
        page = out / f"{name}.html"
        titles = self.measurer.titles(self.best.cell, self.best.num)
        texts = page_texts(
            self.options, self.compared, titles, words, title, self.measurer.setting.run
        )
        write_page(
            page, self.points, self.images(), metric=metric, texts=texts, equal=self.alike,
            optimum=self.verdict if varying(self.compared) == ["sigma_rel"] else None,
            first_seed=self.options.first_seed,
        )  # fmt: skip
        return page

    @functools.cached_property
    def _joint(self) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        points = self.compared
        return self.measurer.joint([p.cell for p in points], points[0].num)


def sweep_ema(
    run: str | Path,
    sigma_rel: Sequence[float] = (),
    *,
    metric: MetricName = "fid",
    ref: FeatureStats | str | Path | None = None,
    data: ImageDataset | str | Path | None = None,
    num: int | None = None,
    out: str | Path | None = None,
    progress: Callable[[int, int], object] | None = None,
    **options: Any,
) -> Sweep:
    """Measure the model of a training run at several EMA lengths, all on the same seeds.

    What is in the ledger of ``out`` is not measured again: the same call continues, and longer
    lists or more images extend. Under torchrun, processes share the images.

    Args:
        run: Folder of the training run.
        sigma_rel: EMA lengths; leave them out with ``search=True`` or ``decay=[...]``.
        metric: Name in :data:`edm2lite.metrics.METRICS`, ``module:Class``, or a class.
        ref: Reference statistics or their file, for metrics that compare with one.
        data: Held-out data set or its name, for the metric ``loss``.
        num: Number of images per length. [default: 50000, or all of ``data``]
        out: Folder of the ledger. [default: the run]
        progress: Function that is called with the number of images that are done, and of all that
            are asked for so far.
        options: Further fields of :class:`SweepOptions`.

    Raises:
        FileNotFoundError: If the run or a file is not there.
        ValueError: If options do not go together, the metric lacks what it needs, the predicted
            error of a length is above ``max_error`` (0.02), or another process writes the ledger.

    Example:
        A run of a network that never learned anything, with one snapshot:

        >>> import tempfile
        >>> from edm2lite.diffusion.precond import Precond, PrecondConfig
        >>> from edm2lite.ema import PowerFunctionEMA
        >>> from edm2lite.network.unet import UNetConfig
        >>> unet = UNetConfig(img_resolution=8, img_channels=1, model_channels=8, channel_mult=(1,),
        ...                   num_blocks=1, attn_resolutions=(), head_channels=8)
        >>> net = Precond(PrecondConfig(backbone=unet))
        >>> ema = PowerFunctionEMA(net, sigma_rels=[0.1, 0.2])
        >>> ema.update(nimg=64)
        >>> with tempfile.TemporaryDirectory() as run:
        ...     _ = ema.save_snapshots(run, extra={"model": net.config.to_json()})
        ...     sweep = sweep_ema(run, [0.1, 0.2], metric="loss", data="digits", num=64)
        ...     page = sweep.write()
        >>> [point.sigma_rel for point in sweep.points], sweep.best.num, page.name
        ([0.1, 0.2], 64, 'sweep.html')
    """
    requested = SweepOptions(
        run=Path(run), sigma_rel=sigma_rel, metric=metric, ref=ref, data=data, num=num,
        out=None if out is None else Path(out), **options,
    )  # fmt: skip
    return run_sweep(requested, progress)


def run_sweep(options: SweepOptions, progress: Callable[[int, int], object] | None = None) -> Sweep:
    """Measure what options say; see :func:`sweep_ema`."""
    with options.claim() as mine:
        found = _run(options, progress)
        if mine is not None:
            mine.check()
        return found


def _run(options: SweepOptions, progress: Callable[[int, int], object] | None) -> Sweep:
    groups = group_names(options)
    ends: Sequence[int | None] = options.at or [None]
    form: dict[str, Any] = (
        {"decay": options.decay[0]} if options.decay else {"sigma_rel": list(options.lengths)}
    )
    plans = [plan_targets(options.run, nimg=n, **form)[0] for n in ends]
    measurer = _measurer(options, plans[0].inputs[-1], progress or (lambda done, total: None))
    num, notes = measurer.metric.num_images(options.num), ""
    times = [plan.nimg for plan in plans]
    measurer.check_errors([*options.planned, *options.decay], times, options.guide_sigma_rel)
    cells, raw = grid_cells(options, times), raw_cells(options, times)
    if options.search:
        points, notes = searched(options, measurer, cells[0], raw, num)
    else:
        points = measurer.points([*raw, *cells], num)
    if groups:
        points = grouped(measurer, points, groups, num)
    return Sweep(options, points, notes, measurer)


def _measurer(
    options: SweepOptions, last: SnapshotInfo, progress: Callable[[int, int], object]
) -> Measurer:
    place = processes.device() if options.device is None else options.device
    told = last.header.metadata
    inputs = MetricInputs.of(
        options.ref, options.data, () if options.weights is None else (options.weights,),
        options.batch_size, place, options.clip,
    )  # fmt: skip
    (metric,) = options.metric_class.create(inputs)
    generation = Generation(
        options.sampling, None, options.batch_size, inputs.device, options.first_seed,
        None if options.conditions is None else images_of(options.conditions), options.guide or "",
        inputs.captions, "encoder" in told and encoder_from_json(told["encoder"]).has_network,
    )  # fmt: skip
    setting = Setting(metric.record_name, last.run, metric.record(generation))
    rank, world = processes.rank(), processes.world_size()
    ledger = Ledger(options.folder, writer=rank == 0)
    return Measurer(
        options.run, metric, generation, setting, ledger, rank, world, progress, options.guide,
        options.max_error,
    )  # fmt: skip
