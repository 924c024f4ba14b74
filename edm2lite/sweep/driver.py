"""``sweep_ema``: EMA lengths of a run against a metric, and what comes of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edm2lite import processes
from edm2lite.dataset import ImageDataset
from edm2lite.ema import plan_targets
from edm2lite.metrics.feature_stats import FeatureStats
from edm2lite.metrics.image_source import Generation, images_of
from edm2lite.metrics.inputs import MetricInputs
from edm2lite.metrics.interval import Verdict, alike, judge
from edm2lite.metrics.metric import Metric
from edm2lite.metrics.registry import MetricName
from edm2lite.sweep.cells import Cell, Point, best, varying, write_csv
from edm2lite.sweep.grid import grid_cells, group_names, grouped, searched
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
        """Class of the metric."""
        return self.options.metric_class

    @property
    def best(self) -> Point:
        """The averaged point of the best value."""
        return best(self.points, self.metric.lower_is_better)

    @property
    def final(self) -> list[Point]:
        """The averaged points of the most images, by ascending length."""
        num = self.best.num
        points = [p for p in self.points if p.num == num and p.sigma_rel is not None]
        return sorted(points, key=lambda p: p.sigma_rel or 0)

    @property
    def alike(self) -> list[Point] | None:
        """The points that cannot be told apart from the best one, which is among them.

        None if the metric has no intervals, so that nothing can be told apart.
        """
        values, covariance = self._joint
        if covariance is None:
            return None
        return [self.final[i] for i in alike(values, covariance, self.metric.lower_is_better)]

    @functools.cached_property
    def verdict(self) -> Verdict:
        """The verdict on :attr:`final` as a curve over the length."""
        lengths = [p.sigma_rel or 0 for p in self.final]
        return judge(lengths, *self._joint, self.metric.lower_is_better)

    @property
    def words(self) -> str:
        """The verdict in words."""
        final, name = self.final, self.options.metric
        if len(varying(final)) == 1:
            text = curve_words(final, self.verdict, name)
        else:
            equal = self.alike
            indices = None if equal is None else [final.index(point) for point in equal]
            text = cell_words(final, indices, name)
        return " ".join(part for part in (text, self.notes) if part)

    @property
    def title(self) -> str:
        """What was measured and how, in one line."""
        return self.options.title(self.best.num, sorted({p.nimg for p in self.final}))

    def table(self) -> str:
        """The points as a Markdown table."""
        return markdown_table(self.points, self.options.metric)

    def images(self) -> dict[Cell, NDArray[np.uint8]]:
        """The first images of each cell of :attr:`final`, [n, C, H, W], the same seeds in all."""
        ledger, setting = self.measurer.ledger, self.measurer.setting
        kept = {p.cell: ledger.images(setting, p.cell, p.num) for p in self.final}
        return {cell: images for cell, images in kept.items() if images is not None}

    def write(self, folder: str | Path | None = None) -> Path:
        """Write ``sweep.csv``, ``sweep.md`` and ``sweep.html``; one process does it.

        Args:
            folder: Where to. [default: the folder of the ledger]

        Returns:
            The page, ``sweep.html``.
        """
        out = self.options.folder if folder is None else Path(folder)
        name, words, title = self.options.metric, self.words, self.title
        write_csv(out / "sweep.csv", self.points)
        write_report(out / "sweep.md", self.points, name, words, title)
        page = out / "sweep.html"
        write_page(page, self.points, self.images(), metric=name, verdict=words, protocol=title)
        return page

    @functools.cached_property
    def _joint(self) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        final = self.final
        return self.measurer.joint([p.cell for p in final], final[0].num)


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
        sigma_rel: EMA lengths; leave them out with ``search=True``.
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
        ValueError: If options do not go together, or the metric lacks what it needs.

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
    groups = group_names(options)
    ends: Sequence[int | None] = options.at or [None]
    plans = [plan_targets(options.run, sigma_rel=list(options.lengths), nimg=n)[0] for n in ends]
    measurer = _measurer(options, plans[0].inputs[-1].run, progress or (lambda done, total: None))
    num, notes = measurer.metric.num_images(options.num), ""
    cells = grid_cells(options, [plan.nimg for plan in plans])
    if options.search:
        points, notes = searched(options, measurer, cells[0], num)
    else:
        points = measurer.points(cells, num)
    if groups:
        points = grouped(measurer, points, groups, num)
    return Sweep(options, points, notes, measurer)


def _measurer(options: SweepOptions, run: str, progress: Callable[[int, int], object]) -> Measurer:
    place = processes.device() if options.device is None else options.device
    inputs = MetricInputs.of(
        options.ref, options.data, () if options.weights is None else (options.weights,),
        options.batch_size, place,
    )  # fmt: skip
    (metric,) = options.metric_class.create(inputs)
    generation = Generation(
        options.sampling, None, options.batch_size, inputs.device, options.first_seed,
        None if options.conditions is None else images_of(options.conditions), options.guide or "",
    )  # fmt: skip
    setting = Setting(metric.record_name, run, metric.record(generation))
    rank, world = processes.rank(), processes.world_size()
    ledger = Ledger(options.folder, writer=rank == 0)
    return Measurer(
        options.run, metric, generation, setting, ledger, rank, world, progress, options.guide
    )
