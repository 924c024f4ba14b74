"""EMA update of two profiles against the time of moving the bytes it must move.

An update must read every parameter once, and read and write both of its averages: 20 bytes per
float32 parameter. Two ways of moving as many are timed, in turn with the update:

- copy: one ``torch.Tensor.copy_`` that reads 10 and writes 10 bytes per parameter, which is how
  memory bandwidth is commonly measured. The claim is against this one.
- in place: for each tensor, in pieces that stay in cache, ``average += theta`` twice: the bytes and
  the order of the update itself, with the least arithmetic there is. On a CPU this is the stricter
  bound, because memory that is only written, as by a copy, is fetched first.

The update itself moves 24 bytes: a non-finite value in the last tensor must be found before the
first average is changed. Against the stricter bound its own bound is therefore 1.2, plus the lower
bandwidth of reading alone. On a GPU an update moves 28 to 44 bytes, by how much stays in its cache:
there the ratio is printed, and nothing is claimed.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable

import click
import torch
from timing import queued, seconds
from torch import Tensor

from edm2lite.ema import PowerFunctionEMA

CLAIM = 1.3  # on a CPU; on a GPU nothing has been measured
PIECE = 2**21


def unet_shapes(params: int) -> list[tuple[int, ...]]:
    """Shapes like those of an EDM2 U-Net's blocks, together ``params`` elements or a few more."""
    shapes: list[tuple[int, ...]] = []
    num, level = 0, 0
    while num < params:
        width = (128, 256, 384, 512)[level % 4]
        block = [(width, width, 3, 3), (width, width, 3, 3), (width, 512), (), (3 * width, width)]
        shapes += block
        num += 18 * width**2 + 512 * width + 1 + 3 * width**2
        level += 1
    return shapes


def in_place(thetas: list[Tensor], first: list[Tensor], second: list[Tensor]) -> None:
    for theta, a, b in zip(thetas, first, second, strict=True):
        for t, x, y in zip(theta.split(PIECE), a.split(PIECE), b.split(PIECE), strict=True):
            x.add_(t)
            y.add_(t)


@click.command()
@click.option("--params", default=125_000_000, show_default=True, help="Number of parameters.")
@click.option("--rounds", default=15, show_default=True, help="Rounds, each times all three.")
@click.option("--threads", default=0, help="CPU threads. [default: as torch chooses]")
@click.option("--device", default="cpu", show_default=True, help="Where model and averages live.")
def main(params: int, rounds: int, threads: int, device: str) -> None:
    """Time the EMA update of two profiles and print a Markdown table.

    \b
    Example:
      python benchmarks/ema_update.py --threads 2
    """
    if threads:
        torch.set_num_threads(threads)
    where = torch.device(device)
    model = {str(i): torch.randn(s, device=where) for i, s in enumerate(unet_shapes(params))}
    num = sum(t.numel() for t in model.values())
    ema = PowerFunctionEMA(model)
    thetas = [t.reshape(-1) for t in model.values()]
    sums = [[torch.zeros_like(t) for t in thetas] for _ in range(2)]
    source = torch.ones(num * 5 // 2, device=where)
    target = torch.empty_like(source)
    clock = iter(range(1_000_000, 10**9, 1000))
    runs: dict[str, Callable[[], object]] = {
        "update of 2 profiles": lambda: ema.update(next(clock)),
        "in place, 20 bytes": lambda: in_place(thetas, *sums),
        "copy, 20 bytes": lambda: target.copy_(source),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        seconds(run, where)
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(queued(run, where))
    update = times["update of 2 profiles"]
    click.echo(f"{num} parameters in {len(model)} tensors, {rounds} rounds, {where},")
    click.echo(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}\n"
    )
    click.echo("| what | ms, median | ms, quartiles | GB/s | update / this, median (quartiles) |")
    click.echo("|---|---|---|---|---|")
    medians = {}
    for name, taken in times.items():
        low, median, high = statistics.quantiles([1e3 * t for t in taken], n=4)
        ratios = [u / t for u, t in zip(update, taken, strict=True)]
        r_low, medians[name], r_high = statistics.quantiles(ratios, n=4)
        click.echo(
            f"| {name} | {median:.1f} | {low:.1f} to {high:.1f} | {20e-6 * num / median:.1f} |"
            f" {medians[name]:.2f} ({r_low:.2f} to {r_high:.2f}) |"
        )
    ratio = medians["copy, 20 bytes"]
    if where.type == "cpu":
        assert ratio <= CLAIM, (
            f"the update must take at most {CLAIM} of moving its bytes, took {ratio}"
        )


if __name__ == "__main__":
    main()
