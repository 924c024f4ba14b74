"""Measuring the cells of a sweep: rebuild in one pass, make rows, reduce, record."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from edm2lite.ema import plan_targets
from edm2lite.ema.reconstruction import build
from edm2lite.ema.targets import Reconstruction
from edm2lite.metrics.influence import covariance
from edm2lite.metrics.interval import interval
from edm2lite.metrics.moments import Array
from edm2lite.metrics.rows import Rows
from edm2lite.models.loading import Model, from_reconstruction, load
from edm2lite.sweep.cells import Cell, Point
from edm2lite.sweep.groups import mixed
from edm2lite.sweep.ledger import Ledger, Result, Setting
from edm2lite.sweep.metrics import Metric

_HELD_BYTES = 4 * 2**30
"""Rebuilt models are held in memory up to this size; more lengths take another pass."""


@dataclass
class Measurer:
    """Measures cells of one run under one metric.

    Attributes:
        run: The run, or its folder of snapshots.
        metric: What to measure.
        setting: Under which the ledger keeps it.
        ledger: What has been measured.
        rank, world: Which share of the images this process makes.
        progress: Hears of images that are there: made, or found.
        guide: Model name that guides, "unconditional", or None; with ``guide_sigma_rel`` in a cell a
            run, or RUN@nimg=N.
    """

    run: Path
    metric: Metric
    setting: Setting
    ledger: Ledger
    rank: int = 0
    world: int = 1
    progress: Callable[[int], object] = lambda count: None
    guide: str | None = None
    _plans: dict[tuple[float, int], Reconstruction] = field(default_factory=dict, repr=False)

    def measure(self, cells: Sequence[Cell], num: int) -> list[Result]:
        """Results in the order of ``cells``; those in the ledger are not measured again."""
        todo = [c for c in cells if self.ledger.get(self.setting, c, num) is None]
        for cell, model, guide in self._models(todo):
            key, make = self.metric.rows(model, guide, cell.guidance)
            rows = Rows(self.ledger.folder / "features", key, self.rank, self.world)
            rows.fill(num, make, self.progress)
            if self.rank > 0:
                self.ledger.wait(self.setting, cell, num)
                continue
            rows.wait(num, self.progress)
            measured = self.metric.reduce(functools.partial(rows.parts, num), num, model)
            gamma, error = self._average(cell)
            result = Result(measured.value, gamma, error, measured.details)
            self._keep_images(cell, num, rows.images())
            self.ledger.add(self.setting, cell, num, result, measured.spread)
        return [self.ledger.wait(self.setting, cell, num) for cell in cells]

    def joint(self, cells: Sequence[Cell], num: int) -> tuple[Array, Array]:
        """Values [L] and their covariance [L, L] over seeds."""
        values = np.array([result.value for result in self.measure(cells, num)])
        spreads = [self.ledger.spread(self.setting, cell, num) for cell in cells]
        return values, covariance(spreads)

    def points(self, cells: Sequence[Cell], num: int) -> list[Point]:
        """Rows of the table."""
        results = self.measure(cells, num)
        low, high = interval(*self.joint(cells, num))
        return [
            Point(
                **vars(cell), gamma=r.gamma, predicted_error=r.predicted_error, value=r.value,
                low=float(a), high=float(b), num=num,
            )
            for cell, r, a, b in zip(cells, results, low, high, strict=True)
        ]  # fmt: skip

    def plan(self, sigma_rel: float, nimg: int) -> Reconstruction:
        """The plan of one length: made alone, so that it does not depend on the others."""
        key = (sigma_rel, nimg)
        if key not in self._plans:
            (self._plans[key],) = plan_targets(self.run, sigma_rel=sigma_rel, nimg=nimg)
        return self._plans[key]

    def _average(self, cell: Cell) -> tuple[float | None, float]:
        if cell.sigma_rel is None:
            return None, 0.0
        plan = self.plan(cell.sigma_rel, cell.nimg)
        return plan.gamma, plan.predicted_error

    def _models(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Model, Any]]:
        """Each cell with its model and guide; rebuilt in as few passes as memory allows."""
        outer = dict.fromkeys((cell.nimg, cell.guide_sigma_rel) for cell in cells)
        for nimg, guide_length in outer:
            part = [c for c in cells if (c.nimg, c.guide_sigma_rel) == (nimg, guide_length)]
            guide = self._guide(guide_length)
            for cell in part:
                if cell.sigma_rel is None:
                    yield cell, load(self.run), guide if cell.guidance != 1 else None
            averaged = [cell for cell in part if cell.sigma_rel is not None]
            rest = {c.rest_sigma_rel: None for c in averaged if c.group}
            others = dict(self._rebuilt([s for s in rest if s is not None], nimg))
            lengths = list(dict.fromkeys(c.sigma_rel for c in averaged if c.sigma_rel is not None))
            for length, model in self._rebuilt(lengths, nimg):
                for cell in (c for c in averaged if c.sigma_rel == length):
                    own = model
                    if cell.group and cell.rest_sigma_rel is not None:
                        own = mixed(others[cell.rest_sigma_rel], model, cell.group)
                    yield cell, own, guide if cell.guidance != 1 else None

    def _rebuilt(self, lengths: Sequence[float], nimg: int) -> Iterator[tuple[float, Model]]:
        plans = [self.plan(length, nimg) for length in lengths]
        if not plans:
            return
        size = sum(spec.numel * 4 for spec in plans[0].inputs[0].header.tensors.values())
        held = max(1, _HELD_BYTES // size)
        for begin in range(0, len(plans), held):
            for built in build(plans[begin : begin + held]):
                assert built.sigma_rel is not None
                yield built.sigma_rel, from_reconstruction(built, f"{self.run}@{built.sigma_rel}")

    def _guide(self, length: float | None) -> Any:
        if self.guide is None or self.guide == "unconditional":
            return self.guide
        if length is None:
            return load(self.guide)
        run, at, nimg = self.guide.partition("@")
        return load(f"{run}@sigma_rel={length!r}{',' if at else ''}{nimg}")

    def _keep_images(self, cell: Cell, num: int, images: Tensor | None) -> None:
        if images is not None:
            self.ledger.keep_images(self.setting, cell, num, images)
