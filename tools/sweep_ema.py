"""``sweep_ema``: which EMA length is best, and how sure that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edm2lite.version import __version__

from ._cli import COUNT, COUNTS, FLOATS, GUIDE, RANGE, plugin_option, user_errors

_FILE = click.Path(path_type=Path, dir_okay=False)


# fmt: off
@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--sigma-rel", type=FLOATS, help="Lengths, e.g. 0.02:0.25:0.01.")
@click.option("--search", is_flag=True, help="Find the best length instead, in few evaluations.")
@click.option("--range", "span", type=RANGE, default="0.02:0.25", show_default=True,
              help="Where --search looks.")
@click.option("--ref", type=_FILE, help="Reference statistics: `edm2lite evaluate stats`, or .npz.")
@click.option("--num", type=COUNT, default=50_000, show_default=True, help="Images per length.")
@click.option("--steps", type=click.IntRange(1), default=32, show_default=True,
              help="Steps of the sampler.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
              help="First seed of the images; others repeat the experiment.")
@click.option("--at", type=COUNTS, metavar="LIST",
              help="Ends of the averages in images, e.g. 16Mi,32Mi. [default: latest snapshot]")
@click.option("--guidance", type=FLOATS, default="1", help="Weights, e.g. 1:2:0.2. [default: 1]")
@click.option("--guide", type=GUIDE, metavar="MODEL",
              help="Weaker model for guidance, or `unconditional`.")
@click.option("--guide-sigma-rel", type=FLOATS,
              help="EMA lengths of the guide, which is then a run, or RUN@nimg=N.")
@click.option("--groups", metavar="all|LIST",
              help="Also sweep single groups of tensors, the others held at the best length.")
@click.option("--metric", type=click.Choice(["fd", "loss"]), default="fd", show_default=True,
              help="Fréchet distance; or denoising loss on --data, which needs no sampling.")
@click.option("--data", help="Held-out data set for --metric loss.")
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True,
              help="Images at a time.")
@click.option("--weights", type=_FILE,
              help="File with the extractor's weights. [default: as the reference was made]")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False),
              help="Folder for tables, pictures and the ledger. [default: RUN]")
@plugin_option
@click.version_option(__version__)
@user_errors
# fmt: on
def main(run: Path, out: Path | None, **options: Any) -> None:
    """Measure RUN's model at several EMA lengths: table, intervals, plot, page.

    Every length uses the same seeds. What is in the ledger (sweep.jsonl) is not measured again, and
    images that features are kept of (features/) are not generated again: the same command
    continues, and longer lists or more images extend. Under torchrun, processes share the images.

    \b
    Examples:
      sweep_ema runs/a --sigma-rel 0.02:0.25:0.01 --ref imagenet.safetensors --num 5000
      sweep_ema runs/a --search --ref imagenet.safetensors
      sweep_ema runs/a --sigma-rel 0.03,0.06,0.12 --guidance 1:2:0.2 \\
        --guide runs/xs@sigma_rel=0.1 --ref imagenet.safetensors --num 10000
      sweep_ema runs/a --sigma-rel 0.01:0.28:0.005 --metric loss --data held-out.zip --num 1000
      torchrun --nproc_per_node=8 -m edm2lite.tools.sweep_ema runs/a --search --ref imagenet.npz
    """  # fmt: skip
    from ._sweep import Asked, sweep

    sweep(Asked(run=run, out=out if out is not None else run, **options))


if __name__ == "__main__":
    main()
