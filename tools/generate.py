"""``edm2lite generate``: images from one or several models."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2lite import processes
from edm2lite.extras import require

from ._cli import CLASS, GUIDE, SEEDS, ImageBar, plugin_option, user_errors
from ._generation import draw, list_recipes
from ._notes import note_raw_weights, note_sampling
from ._sampling import from_recipe, sampling_options, take_sampling

if TYPE_CHECKING:
    from edm2lite.sampling.image_folder import ImageFolder
    from edm2lite.sampling.images import ImageGenerator
    from edm2lite.sampling.settings import Sampling

_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("models", nargs=-1, metavar="MODEL...")
@click.option(
    "--seeds",
    type=SEEDS,
    default="0-63",
    show_default=True,
    help="Seeds, one image each, e.g. 0-49999.",
)
@click.option(
    "--class",
    "classes",
    type=CLASS,
    metavar="N|all",
    help="Class of every image, or all classes in turn. [default: drawn from the seed]",
)
@click.option(
    "--conditions",
    metavar="DATASET",
    help="Take what the network is told from the images of a data set, one after the"
    " other; --class goes before its classes.",
)
@click.option(
    "--guide",
    type=GUIDE,
    metavar="MODEL",
    help="Weaker model to guide away from, or `unconditional`: MODEL without its"
    " conditions, if it was trained with label dropout. Needs --guidance.",
)
@sampling_options
@click.option("--recipe", metavar="NAME", help="A published setting, in place of MODEL and guide.")
@click.option(
    "--weights", type=_FOLDER, metavar="DIR", help="Folder of the weights that --recipe names."
)
@click.option(
    "--list-recipes",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=list_recipes,
    help="Print all recipes and exit.",
)
@click.option(
    "--batch",
    "batch_size",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Images at a time on a GPU; ignored on a CPU, where it is chosen.",
)
@click.option(
    "--compile", "compiled", is_flag=True, help="Compile the networks with torch.compile first."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR|ZIP",
    help="Output folder or ZIP file; with several models, a folder with a sub-folder each.",
)
@click.option(
    "--grid",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also draw all images in one picture; with several models, a row per model.",
)
@plugin_option
@user_errors
def main(
    models: tuple[str, ...],
    guide: str | None,
    recipe: str | None,
    weights: Path | None,
    out: Path,
    grid: Path | None,
    **options: Any,
) -> None:
    """Generate images from each MODEL: a file, a run, or an average of any length of a run.

    A run means its raw last weights; an average of it, RUN@sigma_rel=0.13, is usually better. The
    image of a seed does not depend on the other seeds. Images that are there are kept, so the same
    command continues after an interruption; under torchrun, processes share the seeds.

    \b
    Examples:
      edm2lite generate runs/digits@sigma_rel=0.13 --seeds 0-999 --class all --out images
      edm2lite generate runs/a@sigma_rel=0.07 --guide runs/xs@sigma_rel=0.12,nimg=128Mi \\
        --guidance 2.1 --seeds 0-49999 --out images.zip
      torchrun --nproc_per_node=8 -m edm2lite.tools.generate --recipe edm2-img512-s-autog-fid \\
        --weights weights --seeds 0-49999 --dtype bfloat16 --compile --out images.zip
    """
    if (recipe is None) != bool(models) or (recipe is None) != (weights is None):
        raise click.UsageError("give either MODEL, or --recipe with --weights")
    if (guide is None) != (options["guidance"] is None):
        raise click.UsageError("--guide and --guidance go together")
    if grid is not None and len(models) > 1:  # one row alone needs no names beside it
        require("matplotlib")
    sampling = take_sampling(options)
    if recipe is not None and weights is not None:
        models, guide, sampling = from_recipe(recipe, weights, sampling)
    from edm2lite.sampling.image_folder import ImageFolder

    with ImageFolder(out).claim():  # before models are loaded, or averages rebuilt
        note_raw_weights(*models, guide)
        generators = _generators(models, guide, sampling, **options)
        note_sampling(generators)
        folders = _fill(generators, out)
    num, in_turn = len(options["seeds"]) * len(models), options["classes"] == "all"
    if processes.rank() == 0:
        click.echo(f"{num} images in {out}")
        if grid is not None:
            draw(grid, generators, folders, in_turn)
            click.echo(f"{grid}")


def _generators(
    models: tuple[str, ...],
    guide: str | None,
    sampling: Sampling,
    conditions: str | None,
    **options: Any,
) -> list[ImageGenerator]:
    from edm2lite.dataset import open_dataset
    from edm2lite.sampling.generation import image_generator, loaded_guide

    dataset = None if conditions is None else open_dataset(conditions)
    weaker = loaded_guide(guide)
    return [
        image_generator(name, conditioning=dataset, sampling=sampling, guide=weaker, **options)
        for name in models
    ]


def _fill(generators: list[ImageGenerator], out: Path) -> list[ImageFolder]:
    """Generate what is missing; the folder or ZIP file of each model."""
    from edm2lite.sampling.generation import fill
    from edm2lite.sampling.image_folder import ImageFolder

    names = [generator.model.short_name for generator in generators]
    if len(set(names)) < len(names):
        raise ValueError(f"models must have different names, got {', '.join(names)}")
    folders = [ImageFolder(out if len(names) == 1 else out / name) for name in names]
    with ImageBar("generate") if processes.rank() == 0 else nullcontext() as bar:
        fill(generators, folders, bar)
    return folders


if __name__ == "__main__":
    main()
