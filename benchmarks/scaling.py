"""How the cost of each part grows: with parameters, snapshots, targets and images.

Each line times the same work at four sizes, each twice the one before, the best of some runs, and
fits the exponent: 1 is proportional, 0 is constant. Files are written to a temporary folder and
read from the page cache.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import numpy as np
import torch
from timing import seconds

from edm2lite.ema import PowerFunctionEMA, reconstruct
from edm2lite.metrics.moments import RunningMoments

CPU = torch.device("cpu")
LENGTHS = np.geomspace(0.03, 0.20, 32)
WIDTH = 512  # of features


def model(params: int) -> dict[str, torch.Tensor]:
    """Tensors of 1 MiB and a rest, as many as it takes."""
    full, rest = divmod(params, 2**18)
    sizes = [2**18] * full + [rest] * bool(rest)
    return {str(i): torch.randn(n) for i, n in enumerate(sizes)}


def run_of(folder: Path, params: int, snapshots: int) -> Path:
    """Snapshots of a random walk, two averages each."""
    run = Path(tempfile.mkdtemp(dir=folder))
    weights = model(params)
    ema = PowerFunctionEMA(weights)
    for i in range(1, snapshots // 2 + 1):
        for tensor in weights.values():
            tensor += 0.01 * torch.randn(())
        ema.update(1000 * i)
        ema.save_snapshots(run / "snapshots", dtype=torch.float16)
    return run


def rebuild(run: Path, targets: int) -> Callable[[], object]:
    lengths = [float(x) for x in LENGTHS[:: len(LENGTHS) // targets]]

    def work() -> None:
        with tempfile.TemporaryDirectory(dir=run) as out:
            reconstruct(run, sigma_rel=lengths, out=out, dtype=torch.float16)

    return work


def moments(images: int) -> Callable[[], object]:
    batch = np.random.default_rng(0).standard_normal((256, WIDTH))

    def work() -> None:
        total = RunningMoments()
        for _ in range(images // len(batch)):
            total.add(batch)

    return work


def line(what: str, sizes: Sequence[int], works: Sequence[Callable[[], object]], runs: int) -> str:
    """A row: the best time at each size, and the exponent of growth."""
    times = [min(seconds(work, CPU) for _ in range(runs)) for work in works]
    exponent = np.polyfit(np.log(sizes), np.log(times), 1)[0]
    cells = " | ".join(
        f"{size:.3g}: {1e3 * t:.3g} ms" for size, t in zip(sizes, times, strict=True)
    )
    return f"| {what} | {cells} | {exponent:.2f} |"


@click.command()
@click.option("--params", default=4_000_000, show_default=True, help="The smallest model.")
@click.option("--runs", default=4, show_default=True, help="Of each, the best counts.")
def main(params: int, runs: int) -> None:
    """Time everything at four sizes and print a Markdown table.

    \b
    Example:
      python benchmarks/scaling.py
    """
    click.echo(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}\n"
    )
    click.echo("| what, by what | size: time | | | | exponent |")
    click.echo("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sizes = [params * 2**i for i in range(4)]

        def updates(n: int) -> Callable[[], object]:
            weights = model(n)
            ema = PowerFunctionEMA(weights)
            clock = iter(range(1000, 10**9, 1000))
            return lambda: ema.update(next(clock))

        click.echo(line("EMA update, parameters", sizes, [updates(n) for n in sizes], runs))
        found = [rebuild(run_of(folder, n, 8), 1) for n in sizes]
        click.echo(line("1 length of 8 snapshots, parameters", sizes, found, runs))
        counts = [8, 16, 32, 64]
        found = [rebuild(run_of(folder, params, n), 1) for n in counts]
        click.echo(line("1 length, snapshots", counts, found, runs))
        run = run_of(folder, 4 * params, 16)
        counts = [4, 8, 16, 32]
        found = [rebuild(run, n) for n in counts]
        click.echo(line("lengths of 16 snapshots, lengths", counts, found, runs))
    counts = [4096 * 2**i for i in range(4)]
    click.echo(line("moments for FID, images", counts, [moments(n) for n in counts], runs))


if __name__ == "__main__":
    main()
