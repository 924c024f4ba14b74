"""What ``sweep_ema`` does once it knows what is asked for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2lite import processes

from ._cli import progress

if TYPE_CHECKING:
    from edm2lite.sweep.cells import Cell, Point
    from edm2lite.sweep.measure import Measurer
    from edm2lite.sweep.metrics import Metric


@dataclass(frozen=True)
class Asked:
    """The options of the command, by their names."""

    run: Path
    out: Path
    sigma_rel: list[float] | None
    search: bool
    span: tuple[float, float]
    ref: Path | None
    num: int
    steps: int
    seed: int
    at: list[int] | None
    guidance: list[float]
    guide: str | None
    guide_sigma_rel: list[float] | None
    groups: str | None
    metric: str
    data: str | None
    batch: int
    weights: Path | None

    def __post_init__(self) -> None:
        if self.search == bool(self.sigma_rel):
            raise click.UsageError("give either --sigma-rel or --search")
        if (self.metric == "fd") != (self.ref is not None):
            raise click.UsageError("--metric fd takes --ref, --metric loss takes --data")
        if (self.metric == "loss") != (self.data is not None):
            raise click.UsageError("--metric fd takes --ref, --metric loss takes --data")
        guided = any(weight != 1 for weight in self.guidance)
        if guided != (self.guide is not None) or (self.guide_sigma_rel and not guided):
            raise click.UsageError("--guide and --guidance go together, also for its lengths")
        if guided and self.metric == "loss":
            raise click.UsageError("--metric loss is of the network alone, leave out --guidance")
        several = sum(len(values or ()) > 1 for values in self.others)
        if (several and (self.search or self.groups)) or several > 1:
            raise click.UsageError(
                "a table has two axes: next to the length, give a list for one of --at, --guidance,"
                " --guide-sigma-rel, and for none with --search or --groups"
            )
        if self.search and self.groups:
            raise click.UsageError("--groups takes its lengths from --sigma-rel, not --search")

    @property
    def others(self) -> tuple[Sequence[Any] | None, ...]:
        return self.at, self.guidance, self.guide_sigma_rel


def sweep(asked: Asked) -> None:
    """Measure, write tables and pictures, print."""
    from edm2lite.ema import plan_targets
    from edm2lite.sweep.ledger import Ledger, Setting
    from edm2lite.sweep.measure import Measurer

    from . import _sweep_output as output

    rank, world = processes.rank(), processes.world_size()
    lengths = sorted(set(asked.sigma_rel or asked.span))
    ends: Sequence[int | None] = asked.at or [None]
    plans = [plan_targets(asked.run, sigma_rel=lengths, nimg=n)[0] for n in ends]
    metric = _metric(asked)
    setting = Setting(metric.name, plans[0].inputs[-1].run, metric.protocol)
    ledger = Ledger(asked.out, writer=rank == 0)
    with progress(desc="sweep", unit="img", disable=rank > 0) as bar:
        measurer = Measurer(
            asked.run, metric, setting, ledger, rank, world, bar.update, asked.guide
        )
        times = [plan.nimg for plan in plans]
        if asked.search:
            points, words = _searched(asked, measurer, _cells(asked, [], times)[0])
        else:
            points = measurer.points(_cells(asked, lengths, times), asked.num)
            words = []
        if asked.groups:
            points = _grouped(asked, measurer, points)
    if rank == 0:
        output.write(asked, measurer, points, words)


def _metric(asked: Asked) -> Metric:

    from edm2lite.dataset import open_dataset
    from edm2lite.metrics.extractors import open_extractor
    from edm2lite.metrics.fidelity import FeatureStats, extractor_weights
    from edm2lite.metrics.held_out_loss import LEVELS
    from edm2lite.sampling.settings import Sampling
    from edm2lite.sweep.metrics import Fidelity, GeneratedFeatures, HeldOutLoss

    device = processes.device()
    if asked.ref is None:
        dataset = open_dataset(str(asked.data))
        if len(dataset) < asked.num:
            raise ValueError(f"--data holds {len(dataset)} images, --num {asked.num} asks for more")
        return HeldOutLoss(dataset, LEVELS, asked.batch, device)
    reference = FeatureStats.load(asked.ref)
    weights = extractor_weights(reference, asked.weights)
    features = GeneratedFeatures(
        open_extractor(reference.extractor, weights, device), Sampling(num_steps=asked.steps),
        asked.batch, device, reference.check_images, asked.seed,
    )  # fmt: skip
    guide = asked.guide or ""
    return Fidelity(reference, features, guide)


def _cells(asked: Asked, lengths: Sequence[float], ends: Sequence[int]) -> list[Cell]:
    """All combinations; the raw weights first, where the run ended with the average."""
    from edm2lite.models.loading import load
    from edm2lite.sweep.cells import Cell

    guides: Sequence[float | None] = asked.guide_sigma_rel or [None]
    swept: Sequence[float | None] = lengths or [None]
    cells = [
        Cell(length, nimg, guidance, guide if guidance != 1 else None)
        for guide, nimg, guidance, length in itertools.product(guides, ends, asked.guidance, swept)
    ]
    plain = not asked.guide and len(ends) == 1 and lengths
    if plain and (asked.run / "last.safetensors").is_file():
        if int(load(asked.run).metadata["nimg"]) == ends[0]:
            cells.insert(0, Cell(None, ends[0]))
    return list(dict.fromkeys(cells))


def _searched(asked: Asked, measurer: Measurer, like: Cell) -> tuple[list[Point], list[str]]:
    import dataclasses

    from edm2lite.sweep.search import search

    def cells(lengths: Sequence[float]) -> list[Cell]:
        return [dataclasses.replace(like, sigma_rel=length) for length in lengths]

    found = search(
        lambda lengths, num: measurer.joint(cells(lengths), num), *asked.span, asked.num,
        least=measurer.metric.least,
    )  # fmt: skip
    points = measurer.points(cells(found.confirmed), found.num)
    if found.few < found.num:
        points = measurer.points(cells(found.tried), found.few) + points
    share = found.images / (25 * found.num)
    words = (
        f"Searched {len(found.tried)} lengths on {found.few} images, confirmed"
        f" {len(found.confirmed)} on {found.num}: {found.images} images, {share:.0%} of what a grid"
        " of 25 takes."
    )
    return points, [words]


def _grouped(asked: Asked, measurer: Measurer, base: Sequence[Point]) -> list[Point]:
    """The best point of ``base``, and each group of tensors at each length with the rest there."""
    import dataclasses

    from edm2lite.models.loading import load
    from edm2lite.sweep.cells import best

    groups = load(asked.run).net.config.backbone.groups
    names = list(groups) if asked.groups == "all" else str(asked.groups).split(",")
    unknown = [name for name in names if name not in groups]
    if unknown:
        raise ValueError(f"groups are {', '.join(groups)}, or all; got {unknown[0]!r}")
    held = best(base)
    lengths = [point.sigma_rel for point in base if point.sigma_rel not in (None, held.sigma_rel)]
    cells = [held.cell] + [
        dataclasses.replace(held.cell, sigma_rel=s, group=name, rest_sigma_rel=held.sigma_rel)
        for name, s in itertools.product(names, lengths)
    ]
    return measurer.points(cells, asked.num)
