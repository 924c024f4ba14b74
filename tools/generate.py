"""``edm2lite generate``: images from one or several models."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2lite import processes
from edm2lite.extras import require
from edm2lite.messages.commands import Command

from ._cli import GUIDE, SEEDS, plugin_option, user_errors
from ._device import device_option
from ._editing import editing_options, take_controls, take_edit
from ._generation import draw, filled, list_recipes, made, read_prompts
from ._notes import note_raw_weights, note_sampling
from ._sampling import from_recipe, sampling_options, take_sampling

if TYPE_CHECKING:
    from edm2lite.sampling.images import ImageGenerator
    from edm2lite.sampling.settings import Sampling

_FOLDER = click.Path(path_type=Path, file_okay=False)


TOPICS = {
    "Images": "seeds class prompt prompts conditions size",
    "Model": "adapter recipe weights list-recipes dtype decoder-dtype compile batch device",
    "Sampler": "steps solver schedule sigmas churn",
    "Guidance": (
        "guide guidance negative-prompt interval rescale apg apg-norm apg-momentum guided-channels"
    ),
    "Images to follow and to edit": (
        "control control-guidance control-weights init-image strength from-sigma mask resample"
    ),
    "Output": "out grid",
}


@click.command(cls=Command, topics=TOPICS)
@click.argument("models", nargs=-1, metavar="MODEL...")
@click.option(
    "--seeds",
    type=SEEDS,
    help="Seeds, one image each, e.g. 0-49999. [default: 0-63, or one for each prompt]",
)
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="What images show in words, for a model that is told text; repeatable. With P prompts,"
    " seed s gets prompt s mod P.",
)
@click.option(
    "--prompts",
    "prompt_file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="FILE",
    help="Text file with further prompts, one a line.",
)
@click.option(
    "--negative-prompt",
    default="",
    metavar="TEXT",
    help="What to guide away from in words, in place of no text. Needs --guidance.",
)
@click.option(
    "--class",
    "classes",
    metavar="NAMES|N|all",
    help="Class of the images by name or number, or several in turn: Flags, 3, 0-3, Flags,Food or"
    " all. [default: drawn from the seed]",
)
@click.option(
    "--conditions",
    metavar="DATASET",
    help="Take what the network is told from the images of a data set, one after the"
    " other: classes, condition images, captions as prompts; --class goes before its classes.",
)
@click.option(
    "--guide",
    type=GUIDE,
    metavar="MODEL",
    help="Weaker model to guide away from, or `unconditional`: MODEL without its"
    " conditions, if it was trained with label dropout. Needs --guidance. [default with prompts:"
    " unconditional]",
)
@click.option(
    "--adapter",
    "--control-net",
    "adapters",
    multiple=True,
    metavar="FILE[:STRENGTH]",
    help="Add what fine-tuning has made of MODEL, e.g. cat.safetensors:0.7; repeatable.",
)
@sampling_options
@editing_options
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
    help="Images at a time on a GPU, each batch filled up; ignored on a CPU, where it is chosen.",
)
@click.option(
    "--compile", "compiled", is_flag=True, help="Compile the networks with torch.compile first."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR|ZIP",
    help="Output folder or ZIP file; with several models, a folder with a sub-folder each. Needed"
    " without --grid.",
)
@click.option(
    "--grid",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw all images in one picture; with several models, a row per model.",
)
@device_option
@plugin_option
@user_errors
def main(
    models: tuple[str, ...],
    guide: str | None,
    recipe: str | None,
    weights: Path | None,
    out: Path | None,
    grid: Path | None,
    prompts: tuple[str, ...],
    prompt_file: Path | None,
    **options: Any,
) -> None:
    """Generate images from each MODEL: a file, a run, or an average of any length of a run.

    A run means its raw last weights; an average of it, RUN@sigma_rel=0.13, is usually better. The
    image of a seed does not depend on the other seeds. Images that are there are kept, so the same
    command continues after an interruption; under torchrun, processes share the seeds.

    \b
    Examples:
      edm2lite generate runs/digits@sigma_rel=0.13 --seeds 0-999 --class all --out images
      edm2lite generate runs/emoji@sigma_rel=0.1 --prompt "red heart" --prompt "blue car" \\
        --guidance 2 --grid images.png
      edm2lite generate runs/digits@sigma_rel=0.13 --init-image seven.png --strength 0.6 \\
        --class 7 --seeds 0-7 --grid sevens.png
      edm2lite generate runs/a@sigma_rel=0.07 --guide runs/xs@sigma_rel=0.12,nimg=128Mi \\
        --guidance 2.1 --seeds 0-49999 --out images.zip
      edm2lite generate runs/emoji@sigma_rel=0.1 --class Flags,Food --grid images.png
      edm2lite generate runs/digits --adapter runs/nines:0.5 --class 9 --grid images.png
      torchrun --nproc_per_node=8 -m edm2lite.tools.generate --recipe edm2-img512-s-autog-fid \\
        --weights weights --seeds 0-49999 --dtype bfloat16 --compile --out images.zip
    """
    if (recipe is None) != bool(models) or (recipe is None) != (weights is None):
        raise click.UsageError("give either MODEL, or --recipe with --weights")
    texts = None if not prompts and prompt_file is None else read_prompts(prompts, prompt_file)
    if (guide is None) != (options["guidance"] is None) and (guide is not None or texts is None):
        raise click.UsageError("--guide and --guidance go together")
    if out is None and (grid is None or processes.world_size() > 1):
        raise click.UsageError("give --out, or --grid in one process")
    if grid is not None and (len(models) > 1 or texts is not None):  # names beside the images
        require("matplotlib")
    if options["seeds"] is None and texts is None:
        options["seeds"] = range(64)
    sampling = take_sampling(options)
    if recipe is not None and weights is not None:
        models, guide, sampling = from_recipe(recipe, weights, sampling)
    options["edit"], options["controls"] = take_edit(options), take_controls(options)
    from edm2lite.sampling.image_folder import ImageFolder

    with nullcontext() if out is None else ImageFolder(out).claim():  # before models are loaded
        note_raw_weights(*models, guide)
        generators = _generators(models, guide, sampling, prompts=texts, **options)
        note_sampling(generators)
        rows = made(generators) if out is None else filled(generators, out)
    if processes.rank() == 0:
        if out is not None:
            click.echo(f"{sum(len(g.seeds) for g in generators)} images in {out}")
        if grid is not None:
            draw(grid, generators, rows(), options["classes"] is not None)
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


if __name__ == "__main__":
    main()
