"""``edm2lite evaluate``: feature statistics of image sets, and metrics of models and images."""

from __future__ import annotations

from pathlib import Path

import click

from ._cli import COUNT, plugin_option, user_errors

METRICS = ("fid", "fd_dinov2", "kid", "prc")
_FILE = click.Path(path_type=Path, dir_okay=False)
_BATCH = click.option(
    "--batch", type=click.IntRange(1), default=64, show_default=True, help="Images at a time."
)


class _ScoreByDefault(click.Group):
    """``evaluate X`` is ``evaluate score X`` where X is no command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in self.get_help_option_names(ctx):
            args = ["score", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_ScoreByDefault)
def main() -> None:
    """Feature statistics of image sets, and metrics of models and images against them.

    \b
    Examples:
      edm2lite evaluate stats imagenet.zip --out imagenet.safetensors
      edm2lite evaluate runs/a@sigma_rel=0.1 --ref imagenet.safetensors
    """


# fmt: off
@main.command()
@click.argument("dataset")
@click.option("--out", type=_FILE, required=True, help="File for the statistics.")
@click.option("--extractor", default="inception-v3-compat", show_default=True,
              help="Feature extractor in torch-fidelity's registry, e.g. dinov2-vit-l-14; `digits`"
              " is ours; your own as MODULE:NAME.")
@click.option("--weights", type=_FILE,
              help="File with the extractor's weights. [default: downloaded]")
@click.option("--features", is_flag=True,
              help="Keep the features too, which kid and prc need of the reference.")
@_BATCH
@user_errors
# fmt: on
def stats(
    dataset: str, out: Path, extractor: str, weights: Path | None, features: bool, batch: int
) -> None:
    """Write the feature statistics of DATASET: `digits`, or a folder or ZIP of images.

    Under torchrun, processes share the images.

    \b
    Example:
      edm2lite evaluate stats digits --extractor digits \\
          --weights runs/digits/classifier.safetensors --out runs/digits/reference.safetensors
    """
    from ._evaluation import write_stats

    write_stats(dataset, out, extractor, weights, features, batch)


# fmt: off
@main.command()
@click.argument("source", metavar="MODEL_OR_IMAGES")
@click.option("--ref", "refs", type=_FILE, required=True, multiple=True,
              help="Statistics of `edm2lite evaluate stats`, or .npz with mu and sigma. Give two if"
              " metrics need two extractors.")
@click.option("--metrics", default="fid", show_default=True, metavar="LIST",
              help="fid, fd_dinov2, kid, prc: Fréchet distances, kernel distance, precision and"
              " recall. fid, kid and prc are of the extractor of --ref, whichever it is.")
@click.option("--num", type=COUNT, help="Images. [default: 50000 of a model, all of a data set]")
@click.option("--steps", type=click.IntRange(1), default=32, show_default=True,
              help="Steps of the sampler.")
@click.option("--weights", type=_FILE, multiple=True,
              help="Files with the extractors' weights, one per --ref. [default: as recorded]")
@click.option("--cache", type=click.Path(path_type=Path, file_okay=False),
              help="Folder to keep features in: an interrupted evaluation continues. Needed under"
              " torchrun, where processes share the images.")
@_BATCH
@plugin_option
@user_errors
# fmt: on
def score(
    source: str, refs: tuple[Path, ...], metrics: str, num: int | None, steps: int,
    weights: tuple[Path, ...], cache: Path | None, batch: int,
) -> None:  # fmt: skip
    """Print metrics of MODEL_OR_IMAGES against reference statistics.

    A model (file, run, or RUN@sigma_rel=0.1) generates images of seeds 0, 1, ..., its classes in
    turn; images are read from a folder, ZIP or data set. Fréchet distances come with a 95 %
    interval: where they would be expected with other seeds and as many images.

    \b
    Examples:
      edm2lite evaluate runs/a@sigma_rel=0.1 --ref imagenet.safetensors --num 50000
      edm2lite evaluate images.zip --ref imagenet.safetensors --ref dinov2.safetensors \\
        --metrics fid,fd_dinov2,kid,prc
    """
    from ._evaluation import Scoring

    names = metrics.split(",")
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise click.UsageError(f"metrics are {', '.join(METRICS)}; got {unknown[0]!r}")
    if weights and len(weights) != len(refs):
        raise click.UsageError("give --weights once per --ref, in the same order, or not at all")
    Scoring(source, num, steps, batch, cache).print(refs, weights, names)
