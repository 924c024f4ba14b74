"""``edm2lite generate``: images from one or several models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from edm2lite import processes

from ._cli import SEEDS, user_errors
from ._generation import conditioning_from, draw, fill, folder_name, list_recipes
from ._sampling import from_recipe, sampling_options, take_sampling


@click.command()
@click.argument("models", nargs=-1, metavar="MODEL...")
@click.option(
    "--seeds", type=SEEDS, default="0-63", show_default=True, help="One image each, e.g. 0-49999."
)
@click.option(
    "--class",
    "classes",
    metavar="N|all",
    help="Class of every image, or all classes in turn. [default: drawn from the seed]",
)
@click.option(
    "--guide",
    metavar="MODEL",
    help="Weaker model to guide away from, or `unlabelled`: MODEL without its classes, if it was"
    " trained so. With --guidance.",
)
@sampling_options
@click.option("--recipe", metavar="NAME", help="A published setting, in place of MODEL and guide.")
@click.option(
    "--weights",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder of the weights that --recipe asks for.",
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
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Images at a time on a GPU; a CPU has its own number.",
)
@click.option("--compile", is_flag=True, help="Let torch.compile make kernels first.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR|ZIP",
    help="For the images; with several models, a folder with one sub-folder each.",
)
@click.option(
    "--grid",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also draw all images in one picture; with several models, a row per model.",
)
@user_errors
def main(
    models: tuple[str, ...],
    seeds: list[int],
    classes: str | None,
    guide: str | None,
    recipe: str | None,
    weights: Path | None,
    batch: int,
    compile: bool,
    out: Path,
    grid: Path | None,
    **options: Any,
) -> None:
    """Generate images from each MODEL: a file, a run, or an average of any length of a run.

    The image of a seed does not depend on the other seeds. Images that are there are kept, so the
    same command continues after an interruption; under torchrun, processes share the seeds.

    \b
    Examples:
      edm2lite generate runs/digits@sigma_rel=0.13 --seeds 0-999 --class all --out images
      edm2lite generate runs/a@sigma_rel=0.07 --guide runs/xs@sigma_rel=0.12,nimg=128Mi \\
        --guidance 2.1 --seeds 0-49999 --out images.zip
      torchrun --nproc_per_node=8 -m edm2lite.tools.generate --recipe edm2-img512-s-autog-fid \\
        --weights weights --seeds 0-49999 --dtype bfloat16 --compile --out images.zip
    """  # fmt: skip
    from edm2lite.models.loading import Model, load
    from edm2lite.sampling.generate import Generator
    from edm2lite.sampling.image_folder import ImageFolder

    if (recipe is None) != bool(models) or (recipe is None) != (weights is None):
        raise click.UsageError("give either MODEL, or --recipe with --weights")
    if (guide is None) != (options["guidance"] is None):
        raise click.UsageError("--guide and --guidance go together")
    sampling = take_sampling(options)
    if recipe is not None and weights is not None:
        models, guide, sampling = from_recipe(recipe, weights, sampling)
    other: Model | Literal["unlabelled"] | None = None
    if guide is not None:
        other = "unlabelled" if guide == "unlabelled" else load(guide)
    generators = [
        Generator(
            model, seeds, conditioning_from(classes, seeds, model), sampling, other, batch,
            processes.device(), compile,
        )
        for model in map(load, models)
    ]  # fmt: skip
    names = [folder_name(generator.model) for generator in generators]
    if len(set(names)) < len(names):
        raise ValueError(f"models must have different names, got {', '.join(names)}")
    folders = [ImageFolder(out if len(names) == 1 else out / name) for name in names]
    fill(generators, folders)
    if processes.rank() == 0:
        click.echo(f"{len(seeds) * len(models)} images in {out}")
        if grid is not None:
            draw(grid, generators, folders, classes is not None)
            click.echo(f"{grid}")


if __name__ == "__main__":
    main()
