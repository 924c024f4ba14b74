"""Time that a training step spends outside the network: averages, logging, weights, files, data.

The trainer runs on random 64x64 images with the width of the XXS preset. Every part is timed inside
its loop, by the clock and in processor time of the training thread (on a machine that does other
things as well, trust only the latter). A line is logged after every step and snapshots are written
after every second one, far more often than in a real run.
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from edm2lite.training import trainer as loop
from edm2lite.training.config import load_config
from edm2lite.training.console import Console
from edm2lite.training.hooks import Status
from edm2lite.training.statistics import Statistics

CLAIM = 0.05  # averages, logging and weight norm, of a step
IMAGES = 256
STEP = "forward, backward, Adam"
LOGGING = "statistics, bar, stats.jsonl"
PARTS = ("averages", "forced weight norm", LOGGING)

Times = dict[str, list[tuple[float, float]]]
"""Part -> seconds of every call, by the clock and of the processor."""


def images(folder: Path) -> None:
    """Random PNGs with labels of 1000 classes."""
    rng = np.random.default_rng(0)
    labels = []
    for i in range(IMAGES):
        name = f"{i:04d}.png"
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / name)
        labels.append(f'["{name}", {999 if i == 0 else i}]')
    (folder / "dataset.json").write_text('{"labels": [' + ", ".join(labels) + "]}")


def timed(owner: Any, name: str, part: str, times: Times) -> None:
    """Add the time of every call of ``owner.name`` to ``times[part]``."""
    function: Callable[..., Any] = getattr(owner, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        clock, cpu = time.perf_counter(), time.thread_time()
        result = function(*args, **kwargs)
        times[part].append((time.perf_counter() - clock, time.thread_time() - cpu))
        return result

    setattr(owner, name, wrapper)


def train(run_dir: Path, data: Path, batch: int, microbatch: int, steps: int) -> tuple[int, Times]:
    """(parameters, part -> seconds of every call) of a run of ``steps`` steps."""
    config = load_config(
        "edm2-img64-xs",
        [
            f"data.source={data}",
            "net.backbone.model_channels=64",
            "net.dtype=float32",
            f"batch_size={batch}",
            f"microbatch={microbatch}",
            f"status_nimg={batch}",
            f"snapshot_nimg={2 * batch}",
            f"checkpoint_nimg={steps * batch}",
            f"total_nimg={steps * batch}",
        ],
    )
    times: Times = defaultdict(list)
    trainer = loop.Trainer(config, run_dir, torch.device("cpu"))
    timed(trainer, "train_step", STEP, times)
    timed(trainer.batches, "batch", "waiting for data", times)
    timed(trainer.ema, "update", "averages", times)
    timed(loop, "normalize_weights_", "forced weight norm", times)
    timed(loop, "zero_nonfinite_gradients", "gradient norm and check", times)
    for owner, name in (
        (Statistics, "add_losses"), (Statistics, "add_step"), (Status, "run"),
        (Console, "advance"), (Console, "scalars"),
    ):  # fmt: skip
        timed(owner, name, LOGGING, times)
    timed(trainer.outputs, "save_snapshots", "snapshot: call", times)
    timed(trainer.checkpoints, "save", "checkpoint: call", times)
    trainer.train()
    return sum(p.numel() for p in trainer.net.parameters()), times


@click.command()
@click.option("--batch", default=32, show_default=True, help="Images per step.")
@click.option("--microbatch", default=8, show_default=True, help="Images per forward pass.")
@click.option(
    "--steps", default=5, show_default=True, help="Number of steps; the first is not counted."
)
@click.option("--threads", default=0, help="CPU threads. [default: as torch chooses]")
def main(batch: int, microbatch: int, steps: int, threads: int) -> None:
    """Time the parts of a training step and print a Markdown table.

    \b
    Example:
      python benchmarks/trainer_overhead.py --threads 2
    """
    if threads:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        images(folder / "data")
        num_params, times = train(folder / "run", folder / "data", batch, microbatch, steps)
    share = print_table(times, steps, f"{num_params} parameters, batch {batch} of {microbatch}")
    total = sum(share[part][1] for part in PARTS)
    assert total <= CLAIM, f"they must take at most {CLAIM:.0%} of a step, took {total:.1%}"
    assert share["snapshot: call"][0] < 1, "writing snapshots must stall by less than a step"
    assert share["waiting for data"][0] < 0.01, "loading data must be hidden behind the step"


def print_table(times: Times, steps: int, title: str) -> dict[str, tuple[float, float]]:
    """Print medians over steps; returns the share of each part in the step, by clock and CPU."""
    medians = {}
    for part, taken in times.items():
        calls = max(1, len(taken) // steps)  # of the part in one step
        rounds = [taken[i : i + calls] for i in range(0, len(taken), calls)]
        sums = [tuple(map(sum, zip(*group, strict=True))) for group in rounds]
        medians[part] = tuple(map(statistics.median, zip(*(sums[1:] or sums), strict=True)))
    whole = medians[STEP]
    medians["**averages + weight norm + logging**"] = tuple(
        map(sum, zip(*(medians[part] for part in PARTS), strict=True))
    )
    click.echo(f"{title}, {steps} steps,")
    click.echo(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}\n"
    )
    click.echo("| part | ms per step | of the step | CPU ms | of the step |")
    click.echo("|---|---|---|---|---|")
    for part, (clock, cpu) in medians.items():
        click.echo(
            f"| {part} | {1e3 * clock:.1f} | {clock / whole[0]:.2%}"
            f" | {1e3 * cpu:.1f} | {cpu / whole[1]:.2%} |"
        )
    return {part: (a / whole[0], b / whole[1]) for part, (a, b) in medians.items()}


if __name__ == "__main__":
    main()
