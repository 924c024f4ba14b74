"""The commands that make a sweep again, and images at one of its settings."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edm2lite.ema.targets import MAX_ERROR
from edm2lite.sampling.settings import Sampling
from edm2lite.sweep.cells import Cell, Point
from edm2lite.sweep.options import SweepOptions
from edm2lite.sweep.page import PageTexts

_STEPS = Sampling().num_steps
_SPAN = (0.02, 0.25)


def sweep_command(options: SweepOptions) -> str:
    """The command of a sweep, "" where options cannot be typed: arrays, other sampler settings.

    Where the ledger lies is no part of what was measured, so that there is no ``--out``.

    Args:
        options: What was measured.

    Example:
        >>> options = SweepOptions(run=Path("runs/a"), sigma_rel=(0.1, 0.2), ref="ref.npz", num=500)
        >>> sweep_command(options)
        'edm2lite sweep runs/a --sigma-rel 0.1,0.2 --ref ref.npz --images 500'
    """
    sources = (options.ref, options.data, options.conditions)
    if any(not isinstance(source, str | Path | None) for source in sources):
        return ""
    if set(options.sampling.changes()) - {"num_steps"}:
        return ""
    span = options.span if options.search and options.span != _SPAN else ()
    name = options.metric_class.name
    values: dict[str, Any] = {
        "--sigma-rel": _list(options.sigma_rel),
        "--decay": ",".join(options.decay),
        "--search": options.search,
        "--range": ":".join(f"{end:g}" for end in span),
        "--metric": "" if name == "fid" else name,
        "--ref": options.ref,
        "--data": options.data,
        "--conditions": options.conditions,
        "--images": options.num,
        "--steps": "" if options.sampling.num_steps == _STEPS else options.sampling.num_steps,
        "--seed": options.first_seed or "",
        "--at": _list(options.at),
        "--guidance": "" if list(options.guidance) == [1] else _list(options.guidance),
        "--guide": options.guide,
        "--guide-sigma-rel": _list(options.guide_sigma_rel),
        "--max-error": "" if options.max_error == MAX_ERROR else options.max_error,
        "--groups": options.groups if isinstance(options.groups, str) else _list(options.groups),
        "--weights": options.weights,
        "--clip": options.clip,
    }
    return _line(["edm2lite", "sweep", str(options.run)], values)


def generate_command(
    options: SweepOptions, cell: Cell, titles: Mapping[str, Sequence[str]] | None = None
) -> str:
    """The command that generates images at one setting, "" where no name says which weights.

    Args:
        options: What was measured.
        cell: The setting.
        titles: What the images of the sweep show, under ``classes`` or ``captions``.

    Example:
        >>> options = SweepOptions(run=Path("runs/a"), sigma_rel=(0.1, 0.2), ref="ref.npz")
        >>> generate_command(options, Cell(0.2, 64000))
        'edm2lite generate runs/a@sigma_rel=0.2 --seeds 0-63 --grid images.png'
    """
    if cell.group or set(options.sampling.changes()) - {"num_steps", "solver", "schedule"}:
        return ""
    at = f",nimg={cell.nimg}" if options.at else ""
    average = f"decay={cell.decay}" if cell.decay else f"sigma_rel={cell.sigma_rel}"
    limit = "" if options.max_error == MAX_ERROR else f",max_error={options.max_error:g}"
    name = str(options.run) if cell.is_raw else f"{options.run}@{average}{at}{limit}"
    changes, told = options.sampling.changes(), isinstance(options.conditions, str | Path)
    guide = None if cell.guidance == 1 else options.guide
    if guide and cell.guide_sigma_rel is not None:
        run, _, end = guide.partition("@")
        guide = f"{run}@sigma_rel={cell.guide_sigma_rel}{f',{end}' if end else ''}"
    if options.conditions is not None and not told:  # an array
        return ""
    titles = {} if told or titles is None else titles
    values: dict[str, Any] = {
        "--seeds": f"{options.first_seed}-{options.first_seed + 63}",
        "--class": "all" if titles.get("classes") else "",
        "--prompt": titles.get("captions", [""])[0],
        "--conditions": options.conditions if told else "",
        "--steps": changes.get("num_steps"),
        "--solver": changes.get("solver"),
        "--schedule": changes.get("schedule"),
        "--guide": guide,
        "--guidance": f"{cell.guidance:g}" if guide else "",
        "--grid": "images.png",
    }
    return _line(["edm2lite", "generate", name], values)


def page_texts(
    options: SweepOptions,
    points: Sequence[Point],
    titles: Mapping[str, Sequence[str]],
    verdict: str,
    protocol: str,
    run_id: str,
) -> PageTexts:
    """What the page of a sweep says.

    Args:
        options: What was measured.
        points: The points that the page shows.
        titles: What the images show, under ``classes`` or ``captions``.
        verdict: What is best.
        protocol: What was measured and how.
        run_id: Identifier of the run.
    """
    return PageTexts(
        verdict=verdict,
        protocol=protocol,
        run=options.run.resolve().name,
        run_id=run_id,
        command=sweep_command(options),
        commands={p.cell: generate_command(options, p.cell, titles) for p in points},
        titles=next(iter(titles.values()), ()),
    )


def _list(values: Sequence[Any]) -> str:
    return ",".join(f"{value}" for value in values)


def _line(words: list[str], values: dict[str, Any]) -> str:
    for option, value in values.items():
        if value is True:
            words.append(option)
        elif value not in (None, "", False):
            words += [option, str(value)]
    return shlex.join(words)
