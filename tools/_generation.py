"""What ``edm2lite generate`` prints and draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from numpy.typing import NDArray

from edm2lite import processes
from edm2lite.models.class_names import class_title
from edm2lite.units import format_percent

from ._cli import ImageBar, table

if TYPE_CHECKING:
    from edm2lite.models.loading import Model
    from edm2lite.sampling.images import ImageGenerator

Rows = Callable[[], Sequence[Sequence[NDArray[np.uint8]]]]
"""Function that reads the images [C, H, W] of each model."""


def list_recipes(ctx: click.Context, param: click.Parameter, is_chosen: bool) -> None:
    """Print the published settings and exit: the callback of an option."""
    if is_chosen:
        from edm2lite.sampling.recipes import RECIPES

        kinds = {"recipe": "", "model": "", "guide": "", "weight": "g", "metric": "", "paper": "g"}
        rows = [
            [n, r.model, r.guide or "", r.guidance, r.metric, r.value] for n, r in RECIPES.items()
        ]
        click.echo(table(kinds, rows))
        ctx.exit()


def read_prompts(given: Sequence[str], path: Path | None) -> list[str]:
    """Prompts of the command line, then those of a file, one a line; blank lines are passed over.

    Raises:
        ValueError: If the file is not text in UTF-8, or there are no prompts.
    """
    lines: list[str] = []
    if path is not None:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} must be text in UTF-8, one prompt a line ({error})"
            ) from error
    prompts = [*given, *(line for line in lines if line.strip())]
    if not prompts:
        raise ValueError(f"{path} must hold at least one prompt, found none")
    return prompts


def filled(generators: Sequence[ImageGenerator], out: Path) -> Rows:
    """Generate what is missing in a folder or ZIP file of each model."""
    from edm2lite.sampling.generation import fill
    from edm2lite.sampling.image_folder import ImageFolder

    names = [generator.model.short_name for generator in generators]
    if len(set(names)) < len(names):
        raise ValueError(f"models must have different names, got {', '.join(names)}")
    folders = [ImageFolder(out if len(names) == 1 else out / name) for name in names]
    with ImageBar("generate") if processes.rank() == 0 else nullcontext() as bar:
        fill(generators, folders, bar)
    return lambda: [f.images(g.seeds) for g, f in zip(generators, folders, strict=True)]


def made(generators: Sequence[ImageGenerator]) -> Rows:
    """Generate all images of each model, in memory."""
    total = sum(len(generator.seeds) for generator in generators)
    rows: list[list[NDArray[np.uint8]]] = [[] for _ in generators]
    with ImageBar("generate") as bar:
        bar(0, total)
        for generator, row in zip(generators, rows, strict=True):
            for batch in generator:
                row += list(batch.images.numpy())
                bar(sum(len(each) for each in rows), total)
    return lambda: rows


def draw(
    path: Path,
    generators: Sequence[ImageGenerator],
    rows: Sequence[Sequence[NDArray[np.uint8]]],
    are_classes_in_turn: bool,
) -> None:
    """Draw all images in one picture, with their prompts or the names of their classes.

    Args:
        path: File of the picture.
        generators: What made the images; several get a row each.
        rows: Images of each of them.
        are_classes_in_turn: Whether classes follow each other: rows then have one of each.
    """
    from edm2lite.image_grid import labeled_mosaic, mosaic
    from edm2lite.plotting.images import plot_captioned, plot_images
    from edm2lite.sampling.image_folder import save_png

    first = generators[0]
    prompts = list(first.prompts or ())
    prompts = prompts if any(prompts) else []
    labels, names = first.labels or (), first.model.class_names
    titles = [class_title(names, label) for label in labels] if names else []
    if len(rows) > 1:
        row_names = [_row_name(generator.model) for generator in generators]
        columns = prompts or titles or [str(c) for c in labels or first.seeds]
        plot_images(path, [np.stack(row) for row in rows], row_names, columns)
        return
    in_turn = _period(labels) if are_classes_in_turn else 1
    width = in_turn if 2 <= in_turn <= 32 else math.ceil(math.sqrt(len(rows[0])))
    if prompts:
        plot_captioned(path, rows[0], prompts, width)
    elif titles:
        save_png(path, labeled_mosaic(rows[0], width, titles))
    else:
        save_png(path, mosaic(rows[0], width))


def _period(labels: Sequence[int]) -> int:
    """The smallest number of images after which their classes begin again."""
    for period in range(1, len(labels)):
        if all(a == b for a, b in zip(labels, labels[period:], strict=False)):
            return period
    return len(labels)


def _row_name(model: Model) -> str:
    sigma_rel = model.metadata.get("sigma_rel")
    if sigma_rel is None:
        return model.metadata.get("decay", "raw")
    return format_percent(float(sigma_rel))
