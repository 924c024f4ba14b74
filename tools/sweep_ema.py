"""``edm2lite sweep``: which EMA length is best, and how sure that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edm2lite import processes
from edm2lite.messages.commands import Command
from edm2lite.metrics.registry import METRICS
from edm2lite.version import __version__

from ._cli import (
    COUNT,
    COUNTS,
    DECAYS,
    FLOATS,
    GUIDE,
    RANGE,
    plugin_option,
    progress,
    user_errors,
)
from ._device import device_option

_FILE = click.Path(path_type=Path, dir_okay=False)


TOPICS = {
    "EMA lengths": "sigma-rel decay search range at groups max-error",
    "Metric": "metric ref data weights clip images",
    "Sampler and guidance": "steps seed conditions guidance guide guide-sigma-rel batch device",
    "Output": "out",
}


@click.command(cls=Command, topics=TOPICS)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--sigma-rel", type=FLOATS, help="EMA lengths, e.g. 0.02:0.25:0.01.")
@click.option("--decay", type=DECAYS, help="Decays to emulate, e.g. linear:0.05:0.5:0.05.")
@click.option("--search", is_flag=True, help="Find the best length instead, in few evaluations.")
@click.option(
    "--range",
    "span",
    type=RANGE,
    default="0.02:0.25",
    show_default=True,
    help="Shortest and longest EMA length of --search.",
)
@click.option(
    "--metric",
    default="fid",
    show_default=True,
    metavar="NAME",
    help=f"Metric: {', '.join(METRICS)}, or MODULE:CLASS of your own. fid is the Fréchet distance"
    " in the features of --ref, fid_infinity the same at infinitely many images; loss is computed"
    " on --data, and nothing is sampled.",
)
@click.option(
    "--ref",
    type=_FILE,
    help="Reference statistics: `edm2lite evaluate stats`, .npz, or EDM2's .pkl."
    " [default: made of the images that RUN was trained on, in features learned from these]",
)
@click.option("--data", help="Held-out data set for --metric loss.")
@click.option(
    "--conditions",
    metavar="DATASET",
    help="Data set whose rows say in turn what the model is told."
    " [default: its classes in turn; of a model that is told text, the captions of --ref]",
)
@click.option(
    "--images",
    "--num",
    "num",
    type=COUNT,
    help="Number of images per length. [default: 50000, or all of --data; without --ref as many as"
    " RUN was trained on, at most 500 on a CPU and 5000 on a GPU]",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    help="Number of sampler steps. [default: 32; on a CPU without --ref 12]",
)
@click.option(
    "--seed",
    "first_seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="First seed of the images; others repeat the experiment.",
)
@click.option(
    "--at",
    type=COUNTS,
    metavar="LIST",
    help="Ends of the averages in images, e.g. 16Mi,32Mi. [default: latest snapshot]",
)
@click.option(
    "--guidance", type=FLOATS, help="Weights of guidance, e.g. 1:2:0.2. [default: 1, none]"
)
@click.option(
    "--guide", type=GUIDE, metavar="MODEL", help="Weaker model for guidance, or `unconditional`."
)
@click.option(
    "--guide-sigma-rel",
    type=FLOATS,
    help="EMA lengths of the guide, which is then a run, or RUN@nimg=N.",
)
@click.option(
    "--max-error",
    type=float,
    default=0.02,
    show_default=True,
    help="Fail, before any image is made, if the predicted error of a length exceeds this.",
)
@click.option(
    "--groups",
    metavar="all|LIST",
    help="Also sweep single groups of tensors, the others held at the best length.",
)
@click.option(
    "--batch",
    "batch_size",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Number of images at a time.",
)
@click.option(
    "--clip",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of a transformers CLIPModel, for clip_score.",
)
@click.option(
    "--weights",
    type=_FILE,
    help="File with the extractor's weights, if the reference was made with one.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for tables, pictures and the ledger. [default: RUN]",
)
@device_option
@plugin_option
@click.version_option(__version__)
@user_errors
def main(**options: Any) -> None:
    """Measure RUN's model at several EMA lengths: table, intervals, plot, page.

    Every length uses the same seeds. What is in the ledger (sweep.jsonl) is not measured again, and
    images whose features are kept (features/) are not generated again: the same command continues,
    and longer lists or more images extend. Under torchrun, processes share the images.

    \b
    Examples:
      edm2lite sweep runs/a
      edm2lite sweep runs/a --sigma-rel 0.02:0.25:0.01 --ref imagenet.safetensors --num 5000
      edm2lite sweep runs/a --search --ref imagenet.safetensors
      edm2lite sweep runs/a --decay linear:0.1:0.5:0.1,cosine:0.2 --ref imagenet.safetensors
      edm2lite sweep runs/a --search --ref imagenet-features.safetensors --metric kid --num 10000
      edm2lite sweep runs/a --sigma-rel 0.03,0.06,0.12 --guidance 1:2:0.2 \\
        --guide runs/xs@sigma_rel=0.1 --ref imagenet.safetensors --num 10000
      edm2lite sweep runs/a --sigma-rel 0.01:0.28:0.005 --metric loss --data held-out.zip --num 1000
      torchrun --nproc_per_node=8 -m edm2lite.tools.sweep_ema runs/a --search --ref imagenet.npz
    """
    from edm2lite.sampling import Sampling
    from edm2lite.sweep import SweepOptions, run_sweep
    from edm2lite.sweep.defaults import with_defaults

    from . import _sweep_output as output

    given = {name: value for name, value in options.items() if value is not None}
    chosen = with_defaults(given)
    steps = chosen.options.pop("steps")
    try:
        requested = SweepOptions(sampling=Sampling(num_steps=steps), **chosen.options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    with requested.claim():
        output.check_pictures()
        output.say(chosen.lines)
        chosen.prepare()
        with progress(desc="sweep", unit="img", disable=processes.rank() > 0) as bar:

            def show(done: int, total: int) -> None:
                is_new, bar.total = bar.total != total, total
                bar.update(done - bar.n)
                if is_new:
                    bar.refresh()

            found = run_sweep(requested, show)
        if processes.rank() == 0:
            output.write(found)


if __name__ == "__main__":
    main()
