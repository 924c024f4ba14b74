"""``edm2lite generate``: images from one or several models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ._cli import SEEDS, progress, user_errors

if TYPE_CHECKING:
    from edm2lite.models import Model


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--seeds",
    type=SEEDS,
    default="0-63",
    show_default=True,
    help="One image per seed, e.g. 0-49999.",
)
@click.option(
    "--class",
    "classes",
    default=None,
    metavar="N|all",
    help="Class of every image, or all classes in turn. [default: drawn from the seed]",
)
@click.option(
    "--steps", type=click.IntRange(1), default=32, show_default=True, help="Steps of the sampler."
)
@click.option(
    "--batch", type=click.IntRange(1), default=64, show_default=True, help="Images at a time."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder for the images; with several models, one sub-folder each.",
)
@click.option(
    "--grid",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also draw all images in one picture, a row per model.",
)
@user_errors
def main(
    models: tuple[str, ...],
    seeds: list[int],
    classes: str | None,
    steps: int,
    batch: int,
    out: Path,
    grid: Path | None,
) -> None:
    """Generate images from each MODEL: a file, a run, or an average of any length of a run.

    The image of a seed does not depend on the other seeds. Images that are there are kept, so the
    same command continues after an interruption.

    \b
    Examples:
      edm2lite generate runs/digits@sigma_rel=0.13 --seeds 0-999 --class all --out images
      edm2lite generate runs/a/ema/*.safetensors --seeds 0-9 --out images --grid grid.png
    """
    from edm2lite import plots
    from edm2lite.image_folder import ImageFolder
    from edm2lite.models import load

    folders: list[tuple[Model, ImageFolder]] = []
    for name in models:
        model = load(name)
        folder = ImageFolder(out if len(models) == 1 else out / _folder_name(model))
        if any(folder.path == other.path for _, other in folders):
            raise ValueError(f"models must have different names, {folder.path.name} comes twice")
        folder.open(model, seeds, _classes(classes, seeds, model), steps)
        folders.append((model, folder))
    total = sum(len(folder.missing) for _, folder in folders)
    with progress(total=total, desc="generate", unit="img", disable=not total) as bar:
        for model, folder in folders:
            folder.fill(model, batch, bar)
    click.echo(f"{len(seeds) * len(models)} images in {out}")
    if grid is not None:
        columns = [str(c) for c in folders[0][1].classes or seeds]
        rows = [folder.images() for _, folder in folders]
        plots.image_grid(grid, rows, [_row_name(model) for model, _ in folders], columns)
        click.echo(f"{grid}")


def _classes(text: str | None, seeds: list[int], model: Model) -> list[int] | None:
    label_dim = model.net.config.unet.label_dim
    if text is None:
        return None
    if text == "all" and label_dim:
        return [seed % label_dim for seed in seeds]
    if not text.isdigit():
        raise ValueError(f"--class must be a number or all, got {text!r} for {label_dim} classes")
    return [int(text)] * len(seeds)


def _folder_name(model: Model) -> str:
    """``last`` for a run, the stem of a file, ``sigma_rel=0.1`` for an average of a run."""
    path = Path(model.name)
    if path.is_dir():
        return "last"
    return path.stem if path.is_file() else model.name.partition("@")[2]


def _row_name(model: Model) -> str:
    sigma_rel = model.metadata.get("sigma_rel")
    return "raw" if sigma_rel is None else f"{100 * float(sigma_rel):g} %"
