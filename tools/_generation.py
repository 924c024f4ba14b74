"""What ``edm2lite generate`` prints and draws."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from edm2lite.units import format_percent

from ._cli import table

if TYPE_CHECKING:
    from edm2lite.models.loading import Model
    from edm2lite.sampling.image_folder import ImageFolder
    from edm2lite.sampling.images import ImageGenerator


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


def draw(
    path: Path,
    generators: list[ImageGenerator],
    folders: list[ImageFolder],
    are_classes_in_turn: bool,
) -> None:
    """Draw all images in one picture.

    Args:
        path: File of the picture.
        generators: What made the images; several get a row each.
        folders: Where the images are.
        are_classes_in_turn: Whether all classes follow each other: rows then have one of each.
    """
    from edm2lite.image_grid import mosaic
    from edm2lite.plotting.images import plot_images
    from edm2lite.sampling.image_folder import save_png

    rows = [f.images(g.seeds) for g, f in zip(generators, folders, strict=True)]
    first = generators[0]
    if len(rows) > 1:
        names = [_row_name(generator.model) for generator in generators]
        plot_images(
            path,
            [np.stack(row) for row in rows],
            names,
            [str(c) for c in first.labels or first.seeds],
        )
        return
    num = first.model.num_classes
    in_turn = are_classes_in_turn and 2 <= num <= 32 and len(set(first.labels or ())) > 1
    save_png(path, mosaic(rows[0], num if in_turn else math.ceil(math.sqrt(len(rows[0])))))


def _row_name(model: Model) -> str:
    sigma_rel = model.metadata.get("sigma_rel")
    return "raw" if sigma_rel is None else format_percent(float(sigma_rel))
