"""Which cells a sweep measures: a grid, a search, or groups of tensors alone."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from edm2lite.models.loading import load
from edm2lite.sweep.cells import Cell, Point, best_average
from edm2lite.sweep.groups import group_of
from edm2lite.sweep.measure import Measurer
from edm2lite.sweep.options import SweepOptions
from edm2lite.sweep.search import search


def grid_cells(options: SweepOptions, ends: Sequence[int]) -> list[Cell]:
    """All combinations of what is asked for; a search has one cell without a length.

    Args:
        options: What is asked for.
        ends: Ends of the averages in images.
    """
    guides: Sequence[float | None] = options.guide_sigma_rel or [None]
    averages: list[tuple[float | None, str]] = [(length, "") for length in options.lengths]
    averages = [(None, "")] if options.search else averages + [(None, d) for d in options.decay]
    cells = [
        Cell(length, nimg, guidance, guide if guidance != 1 else None, decay=decay)
        for guide, nimg, guidance, (length, decay) in itertools.product(
            guides, ends, options.guidance, averages
        )
    ]
    return list(dict.fromkeys(cells))


def raw_cells(options: SweepOptions, ends: Sequence[int]) -> list[Cell]:
    """The raw weights, to compare averages with, where the run ended with the average.

    Args:
        options: What is asked for. With guidance, or several ends, there is nothing to compare.
        ends: Ends of the averages in images.
    """
    if options.guide or len(ends) > 1 or not (options.run / "last.safetensors").is_file():
        return []
    final = int(load(options.run).metadata["nimg"])
    return [Cell(None, ends[0])] if final == ends[0] else []


def searched(
    options: SweepOptions, measurer: Measurer, like: Cell, raw: Sequence[Cell], num: int
) -> tuple[list[Point], str]:
    """Points of a search, and what it did in words.

    Args:
        options: What is asked for.
        measurer: Measures lengths.
        like: The cell whose length is searched for.
        raw: The raw weights, if averages are to be compared with them.
        num: Number of images to confirm with.
    """

    def cells(lengths: Sequence[float]) -> list[Cell]:
        return [dataclasses.replace(like, sigma_rel=length) for length in lengths]

    found = search(
        lambda lengths, images: measurer.costs(cells(lengths), images),
        *options.span,
        num,
        measurer.metric.minimum_images,
    )
    points = measurer.points([*raw, *cells(found.confirmed)], found.num)
    if found.few < found.num:
        points = measurer.points(cells(found.tried), found.few) + points
    share = found.images / (25 * found.num)
    return points, (
        f"Searched {len(found.tried)} lengths on {found.few} images, confirmed"
        f" {len(found.confirmed)} on {found.num}: {found.images} images, {share:.0%} of what a grid"
        " of 25 takes."
    )


def group_names(options: SweepOptions) -> list[str]:
    """Groups of tensors that are to be swept alone.

    Raises:
        ValueError: If the network has no group of a name.
    """
    if not options.groups:
        return []
    net = load(options.run).net
    groups = net.config.backbone.groups
    used = {group_of(name, groups) for name in net.state_dict()}
    known = [group for group in groups if group in used]
    named = options.groups.split(",") if isinstance(options.groups, str) else list(options.groups)
    unknown = [name for name in named if name not in (*known, "all")]
    if not known:
        raise ValueError(f"--groups needs a network with groups of tensors, {options.run} has none")
    if unknown:
        raise ValueError(f"groups are {', '.join(known)}, or all; got {unknown[0]!r}")
    return known if "all" in named else named


def grouped(
    measurer: Measurer, base: Sequence[Point], groups: Sequence[str], num: int
) -> list[Point]:
    """The best point, and each group of tensors at each length with the rest held there.

    Args:
        measurer: Measures cells.
        base: Points at which all tensors have one length.
        groups: Groups to sweep alone.
        num: Number of images.
    """
    held = best_average(base, measurer.metric.lower_is_better)
    lengths = [point.sigma_rel for point in base if point.sigma_rel not in (None, held.sigma_rel)]
    cells = [held.cell] + [
        dataclasses.replace(held.cell, sigma_rel=s, group=name, rest_sigma_rel=held.sigma_rel)
        for name, s in itertools.product(groups, lengths)
    ]
    return measurer.points(cells, num)
