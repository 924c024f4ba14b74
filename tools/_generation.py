"""What ``edm2lite generate`` does once it knows what is asked for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from edm2lite import processes
from edm2lite.units import format_percent

from ._cli import progress, table

if TYPE_CHECKING:
    from edm2lite.models.loading import Model
    from edm2lite.network.conditioning import Conditioning
    from edm2lite.sampling.generate import Generator
    from edm2lite.sampling.image_folder import ImageFolder


def list_recipes(ctx: click.Context, param: click.Parameter, asked: bool) -> None:
    if asked:
        from edm2lite.sampling.recipes import RECIPES

        kinds = {"recipe": "", "model": "", "guide": "", "weight": "g", "metric": "", "paper": "g"}
        rows = [
            [n, r.model, r.guide or "", r.guidance, r.metric, r.value] for n, r in RECIPES.items()
        ]
        click.echo(table(kinds, rows))
        ctx.exit()


def fill(generators: list[Generator], folders: list[ImageFolder]) -> None:
    """Generate what is missing: this process its share, the first one then waits for the others."""
    rank, world = processes.rank(), processes.world_size()
    missing = [
        folder.open(generator.settings, generator.seeds, generator.labels)
        for generator, folder in zip(generators, folders, strict=True)
    ]
    total = sum(map(len, missing))
    with progress(total=total, desc="generate", unit="img", disable=rank > 0 or not total) as bar:
        for generator, folder, places in zip(generators, folders, missing, strict=True):
            # shares are of all seeds: processes need not begin together or see the same gaps
            for batch in generator.part([i for i in places if i % world == rank]):
                folder.write(batch)
                bar.update(len(batch.seeds))
            if rank == 0:
                folder.wait([generator.seeds[i] for i in places if i % world], bar.update)
                folder.finish()


def draw(path: Path, generators: list[Generator], folders: list[ImageFolder], chosen: bool) -> None:
    """Draw the images; in rows of one of each class where classes were ``chosen`` in turn."""
    from edm2lite.image_grid import mosaic
    from edm2lite.plotting import figures as plots
    from edm2lite.sampling.image_folder import save_png

    rows = [f.images(g.seeds) for g, f in zip(generators, folders, strict=True)]
    first = generators[0]
    if len(rows) > 1:
        names = [_row_name(generator.model) for generator in generators]
        plots.image_grid(
            path,
            [np.stack(row) for row in rows],
            names,
            [str(c) for c in first.labels or first.seeds],
        )
        return
    num = num_classes(first.model)
    in_turn = chosen and 2 <= num <= 32 and len(set(first.labels or ())) > 1
    save_png(path, mosaic(rows[0], num if in_turn else math.ceil(math.sqrt(len(rows[0])))))


def num_classes(model: Model) -> int:
    """Number of classes of a model, 0 without any."""
    from edm2lite.network.conditioning import ClassLabel

    conditions = model.net.config.backbone.conditions
    return sum(c.num_classes for c in conditions if isinstance(c, ClassLabel))


def conditioning_from(text: str | None, seeds: list[int], model: Model) -> Conditioning | None:
    """What ``--class`` asks for; None leaves it to the generator."""
    import torch

    from edm2lite.network.conditioning import Conditioning

    if text is None:
        return None
    count = num_classes(model)
    if text == "all" and count:
        return Conditioning({"label": torch.tensor([seed % count for seed in seeds])})
    if not text.isdigit():
        raise ValueError(f"--class must be a number or all, got {text!r} for {count} classes")
    return Conditioning({"label": torch.full((len(seeds),), int(text))})


def folder_name(model: Model) -> str:
    """``last`` for a run, the name of a file or folder, ``sigma_rel=0.1`` for an average."""
    path = Path(model.name)
    if path.is_dir():
        return "last" if (path / "last.safetensors").is_file() else path.resolve().name
    return path.stem if path.is_file() else model.name.rpartition("@")[2]


def _row_name(model: Model) -> str:
    sigma_rel = model.metadata.get("sigma_rel")
    return "raw" if sigma_rel is None else format_percent(float(sigma_rel))
