"""``edm2lite evaluate``: feature statistics of image sets, and metrics of models and images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edm2lite import processes
from edm2lite.messages.commands import Group
from edm2lite.metrics.registry import METRICS

from ._cli import COUNT, ImageBar, plugin_option, table, user_errors
from ._device import device_option
from ._notes import note_raw_weights

_FILE = click.Path(path_type=Path, dir_okay=False)
_BATCH = click.option(
    "--batch",
    "batch_size",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Number of images at a time.",
)


class _ScoreByDefault(Group):
    """``evaluate X`` is ``evaluate score X`` where X is no command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in self.get_help_option_names(ctx):
            args = ["score", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_ScoreByDefault)
def main() -> None:
    """Compute feature statistics of image sets, and metrics of models and images against them.

    \b
    Examples:
      edm2lite evaluate stats imagenet.zip --out imagenet.safetensors
      edm2lite evaluate runs/a@sigma_rel=0.1 --ref imagenet.safetensors
    """


@main.command()
@click.argument("dataset")
@click.option("--out", type=_FILE, required=True, help="File of the statistics to write.")
@click.option(
    "--extractor",
    default="inception-v3-compat",
    show_default=True,
    help="Feature extractor in torch-fidelity's registry, e.g. dinov2-vit-l-14; `digits` and"
    " `retrieval` of `edm2lite classifier`; your own as MODULE:NAME.",
)
@click.option(
    "--weights", type=_FILE, help="File with the extractor's weights. [default: downloaded]"
)
@click.option(
    "--features",
    "keep_features",
    is_flag=True,
    help="Keep the features too, which kid, precision and recall need of the reference.",
)
@_BATCH
@device_option
@plugin_option
@user_errors
def stats(dataset: str, out: Path, extractor: str, **options: Any) -> None:
    """Write the feature statistics of DATASET: `digits`, or a folder or ZIP of images.

    Under torchrun, processes share the images. Statistics of other tools (.npz with mu and sigma,
    EDM2's .pkl) are converted; --extractor then says what made their features.

    \b
    Example:
      edm2lite evaluate stats digits --extractor digits \\
          --weights runs/digits/classifier.safetensors --out runs/digits/reference.safetensors
    """
    from edm2lite.metrics import write_statistics

    written = write_statistics(dataset, out, extractor, progress=_bar("features"), **options)
    if written is not None:
        images = f"{written.count} images, " if written.count else ""
        click.echo(f"{out}: {images}{len(written.mean)} features ({extractor})")


TOPICS = {
    "Metric": "ref metrics weights clip data",
    "Images": "images steps conditions batch device",
    "Output": "cache",
}


@main.command(topics=TOPICS)
@click.argument("source", metavar="MODEL_OR_IMAGES")
@click.option(
    "--ref",
    "refs",
    type=_FILE,
    multiple=True,
    help="Statistics of `edm2lite evaluate stats`, .npz with mu and sigma, or EDM2's .pkl. Give two"
    " if metrics need two extractors.",
)
@click.option(
    "--metrics",
    default="fid",
    show_default=True,
    metavar="LIST",
    help=f"Metrics to compute: {', '.join(METRICS)}, prc (precision and recall), caption_recall (at"
    " ranks 1 and 5), or MODULE:CLASS of your own. fid is the Fréchet distance in the features of"
    " --ref, called fd unless these are Inception's; fd_dinov2 is that in DINOv2's; *_infinity are"
    " extrapolated to infinitely many images.",
)
@click.option(
    "--images",
    "--num",
    "num",
    type=COUNT,
    help="Number of images. [default: 50000 of a model, all of a data set]",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Number of sampler steps.",
)
@click.option(
    "--weights",
    type=_FILE,
    multiple=True,
    help="Files with the extractors' weights, one per --ref that was made with such a file."
    " [default: downloaded]",
)
@click.option(
    "--clip",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of a transformers CLIPModel, for clip_score.",
)
@click.option("--data", help="Held-out data set for the metric loss.")
@click.option(
    "--conditions",
    metavar="DATASET",
    help="Data set whose rows say in turn what a model is told."
    " [default: its classes in turn; of a model that is told text, the captions of --ref]",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to keep features in: an interrupted evaluation continues. Needed under torchrun,"
    " where processes share the images.",
)
@_BATCH
@device_option
@plugin_option
@user_errors
def score(source: str, refs: tuple[Path, ...], metrics: str, steps: int, **options: Any) -> None:
    """Print metrics of MODEL_OR_IMAGES, against reference statistics where they need them.

    A model (file, run, or RUN@sigma_rel=0.1) generates images of seeds 0, 1, ..., its classes in
    turn; images are read from a folder, ZIP or data set. Values come with a 95 % interval: where
    they would be expected with other seeds and as many images. Every line says what was scored.

    \b
    Examples:
      edm2lite evaluate runs/a@sigma_rel=0.1 --ref imagenet.safetensors --num 50000
      edm2lite evaluate images.zip --ref imagenet.safetensors --ref dinov2.safetensors \\
        --metrics fid,fd_dinov2,kid,prc
    """
    from edm2lite.metrics import evaluate, find_metrics
    from edm2lite.sampling import Sampling

    try:
        find_metrics(metrics)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    sampling = Sampling(num_steps=steps)
    note_raw_weights(source)
    scores = evaluate(
        source, refs, metrics, sampling=sampling, progress=_bar("evaluate"), **options
    )
    if processes.rank() == 0:
        columns = {"metric": "", "value": "", "95 % interval": "", "of": "", "": ""}
        rows = [[s.title, *s.texts(), s.source, _details(s.details)] for s in scores]
        click.echo(table(columns, rows))
        for note in filter(None, (s.note for s in scores)):
            click.echo(note)


def _bar(description: str) -> ImageBar | None:
    return ImageBar(description) if processes.rank() == 0 else None


def _details(values: dict[str, float]) -> str:
    return ", ".join(f"{name}: {value:.4g}" for name, value in values.items())


if __name__ == "__main__":
    main()
