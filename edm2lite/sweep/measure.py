"""Measuring the cells of a sweep: rebuild in one pass, make rows, compute the metric, record."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from edm2lite.ema import plan_targets
from edm2lite.ema.building import build
from edm2lite.ema.result import Reconstruction
from edm2lite.ema.targets import MAX_ERROR, check_error
from edm2lite.metrics.image_source import Generation
from edm2lite.metrics.measurement import ImageRows
from edm2lite.metrics.metric import Metric
from edm2lite.metrics.moments import Array
from edm2lite.metrics.rows import Rows
from edm2lite.models.loading import Model, from_reconstruction, load
from edm2lite.sampling.compatibility import Guide
from edm2lite.sampling.generation import loaded_guide
from edm2lite.sweep.cells import Cell, Point
from edm2lite.sweep.groups import mixed
from edm2lite.sweep.ledger import Ledger, Result, Setting
from edm2lite.units import parse_count

_HELD_BYTES = 4 * 2**30
"""Rebuilt models are held in memory up to this size; more lengths take another pass."""


@dataclass
class Measurer:
    """Measures cells of one run under one metric.

    Attributes:
        run: The run, or its folder of snapshots.
        metric: The metric.
        generation: Settings by which images are generated, without the guide and its weight.
        setting: What the measurements have in common, under which the ledger keeps them.
        ledger: The measurements.
        rank: Index of this process; it makes every ``world``-th file of rows.
        world: Number of processes.
        progress: Function that is called with the number of images that are there, made or found,
            and the number of all that are asked for so far.
        guide: Name of the model that guides, "unconditional", or None; where a cell has a length of
            the guide, the name of a run, or RUN@nimg=N.
        max_error: Largest acceptable predicted error of a rebuilt average.
    """

    run: Path
    metric: Metric
    generation: Generation
    setting: Setting
    ledger: Ledger
    rank: int = 0
    world: int = 1
    progress: Callable[[int, int], object] = lambda done, total: None
    guide: str | None = None
    max_error: float = MAX_ERROR
    _plans: dict[tuple[float | str, int], Reconstruction] = field(default_factory=dict, repr=False)
    _done: int = 0
    _total: int = 0

    def measure(self, cells: Sequence[Cell], num: int) -> list[Result]:
        """Results in the order of ``cells``; those in the ledger are not measured again."""
        todo = [c for c in cells if self.ledger.get(self.setting, c, num) is None]
        self._total += num * len(todo)
        if todo:
            self.progress(self._done, self._total)  # the total, before the first image is made
        for cell, model, guide in self._models(todo):
            sampling = dataclasses.replace(self.generation.sampling, guidance=cell.guidance)
            generation = dataclasses.replace(self.generation, sampling=sampling, guide=guide)
            key, factory = self.metric.rows_of(model, generation)
            rows = Rows(self.ledger.folder / "features", key, self.rank, self.world)
            rows.fill(num, factory, self._count)
            if self.rank > 0:
                self.ledger.wait(self.setting, cell, num)
                continue
            parts = functools.partial(rows.parts, num)
            table = ImageRows(parts, num, source=model.name)
            if self.metric.uses_images():
                num_classes, captions = (
                    generation.num_classes(model),
                    generation.captions(model, num),
                )
                table = ImageRows(parts, num, num_classes, model.name, captions)
            measured = self.metric.measure(table)
            gamma, error = self._average(cell)
            result = Result(measured.value, gamma, error, dict(measured.details))
            self._keep_images(cell, num, rows.images(), generation, model)
            self.ledger.add(self.setting, cell, num, result, measured.influences)
        return [self.ledger.wait(self.setting, cell, num) for cell in cells]

    def joint(self, cells: Sequence[Cell], num: int) -> tuple[Array, Array | None]:
        """Values [L] and their covariance [L, L] over seeds, None without intervals."""
        values = np.array([result.value for result in self.measure(cells, num)])
        found = [self.ledger.influences(self.setting, cell, num) for cell in cells]
        known = [influences for influences in found if influences is not None]
        return values, self.metric.covariance(known) if len(known) == len(cells) else None

    def titles(self, cell: Cell, num: int) -> dict[str, list[str]]:
        """What the images that were kept of a cell show, under ``classes`` or ``captions``."""
        return self.ledger.titles(self.setting, cell, num)

    def have_heavy_tails(self, cells: Sequence[Cell], num: int) -> bool:
        """Whether a few images decide the interval of one of the cells, which is a guess then."""
        found = [self.ledger.influences(self.setting, cell, num) for cell in cells]
        return any(self.metric.is_heavy(rows) for rows in found if rows is not None)

    def costs(self, cells: Sequence[Cell], num: int) -> tuple[Array, Array | None]:
        """As :meth:`joint`, with values of which the lowest is the best."""
        values, joint = self.joint(cells, num)
        return values if self.metric.lower_is_better else -values, joint

    def points(self, cells: Sequence[Cell], num: int) -> list[Point]:
        """Rows of the table."""
        results = self.measure(cells, num)
        _, joint = self.joint(cells, num)
        points = []
        for i, (cell, result) in enumerate(zip(cells, results, strict=True)):
            low, high = None, None
            if joint is not None:
                influences = self.ledger.influences(self.setting, cell, num)
                assert influences is not None, cell
                low, high = self.metric.limits(result.value, float(joint[i, i]), influences)
            points.append(
                Point(
                    **vars(cell), gamma=result.gamma, predicted_error=result.predicted_error,
                    value=result.value, low=low, high=high, num=num,
                )
            )  # fmt: skip
        return points

    def plan(self, average: float | str, nimg: int) -> Reconstruction:
        """The plan of one average: a length, or the name of a decay."""
        return self._planned([average], nimg)[0]

    def _planned(self, averages: Sequence[float | str], nimg: int) -> list[Reconstruction]:
        """Plans of several averages; what one of them is does not depend on the others."""
        new = [s for s in dict.fromkeys(averages) if (s, nimg) not in self._plans]
        lengths = [s for s in new if not isinstance(s, str)]
        decays = [s for s in new if isinstance(s, str)]
        plans = plan_targets(self.run, sigma_rel=lengths, nimg=nimg) if lengths else []
        plans += plan_targets(self.run, decay=decays, nimg=nimg) if decays else []
        names: list[float | str] = [*lengths, *decays]
        self._plans.update({(s, nimg): plan for s, plan in zip(names, plans, strict=True)})
        return [self._plans[s, nimg] for s in averages]

    def check_errors(
        self, averages: Sequence[float | str], ends: Sequence[int], of_guide: Sequence[float] = ()
    ) -> None:
        """Refuse averages that cannot be rebuilt accurately, before anything is generated.

        Args:
            averages: EMA lengths, and names of decays.
            ends: Ends of the averages in images.
            of_guide: EMA lengths of the guide.

        Raises:
            ValueError: If a predicted error is above ``max_error``; all such averages are named.
        """
        for time in ends:
            check_error(self._planned(averages, time), self.max_error)
        if self.guide is not None and of_guide:
            run, _, at = self.guide.partition("@")
            end = parse_count(at.removeprefix("nimg=") or None)
            nimg = end if isinstance(end, int) else None
            check_error(plan_targets(run, sigma_rel=list(of_guide), nimg=nimg), self.max_error)

    def _count(self, num: int) -> None:
        self._done += num
        self.progress(self._done, self._total)

    def _average(self, cell: Cell) -> tuple[float | None, float]:
        average = cell.decay or cell.sigma_rel
        if average is None:
            return None, 0.0
        plan = self.plan(average, cell.nimg)
        return plan.gamma, plan.predicted_error

    def _models(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Model, Guide]]:
        """Each cell with its model and guide; rebuilt in as few passes as memory allows."""
        outer = dict.fromkeys((cell.nimg, cell.guide_sigma_rel) for cell in cells)
        for nimg, guide_length in outer:
            part = [c for c in cells if (c.nimg, c.guide_sigma_rel) == (nimg, guide_length)]
            guide = self._guide(guide_length)
            for cell in part:
                if cell.is_raw:
                    yield cell, load(self.run), guide if cell.guidance != 1 else None
            averaged = [cell for cell in part if not cell.is_raw]
            rest = {c.rest_sigma_rel: None for c in averaged if c.group}
            others = dict(self._rebuilt([s for s in rest if s is not None], nimg))
            names = [c.decay or c.sigma_rel for c in averaged]
            averages = list(dict.fromkeys(name for name in names if name is not None))
            for average, model in self._rebuilt(averages, nimg):
                for cell in (c for c in averaged if (c.decay or c.sigma_rel) == average):
                    own = model
                    if cell.group and cell.rest_sigma_rel is not None:
                        own = mixed(others[cell.rest_sigma_rel], model, cell.group)
                    yield cell, own, guide if cell.guidance != 1 else None

    def _rebuilt(
        self, averages: Sequence[float | str], nimg: int
    ) -> Iterator[tuple[float | str, Model]]:
        plans = self._planned(averages, nimg)
        if not plans:
            return
        size = sum(spec.numel * 4 for spec in plans[0].inputs[0].header.tensors.values())
        held = max(1, _HELD_BYTES // size)
        for begin in range(0, len(plans), held):
            for built in build(plans[begin : begin + held]):
                average = built.decay or built.sigma_rel
                assert average is not None
                yield average, from_reconstruction(built, f"{self.run}@{average}")

    def _guide(self, length: float | None) -> Guide:
        if self.guide is None or self.guide == "unconditional" or length is None:
            return loaded_guide(self.guide)
        run, at, nimg = self.guide.partition("@")
        query = f"sigma_rel={length!r},max_error={self.max_error}{',' if at else ''}{nimg}"
        return load(f"{run}@{query}")

    def _keep_images(
        self, cell: Cell, num: int, images: Tensor | None, generation: Generation, model: Model
    ) -> None:
        if images is not None:
            titles = generation.titles(model, len(images))
            self.ledger.keep_images(self.setting, cell, num, images, titles)
