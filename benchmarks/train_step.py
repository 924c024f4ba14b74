"""One training step, ours against the network as one writes it from the paper, in turn.

A step is forward, backward, Adam, forced weight norm and the EMA of two profiles. The reference
(``reference.py``) is trained the straightforward way: forced weight norm within forward, and two
averages updated tensor by tensor. Every round times one step of each, on a GPU ten that are queued,
so that the ratio holds when the speed of the machine drifts. MFU is 6 times the
multiply-accumulates over the rate of a large product or convolution of the same type, measured
before. Peak memory is of a GPU; on a CPU see ``memory.py``.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable

import click
import torch
from networks import NETWORKS
from reference import reference_of
from timing import matrix_rate, queued, seconds
from torch import Tensor, nn

from edm2lite.diffusion.objective import DenoisingLoss
from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.ema import PowerFunctionEMA
from edm2lite.ema.formulas import sigma_rel_to_gamma
from edm2lite.network.flops import count_macs
from edm2lite.network.layers import normalize_weights_

NIMG = 10**6
CLAIM = 1.3  # of the faster of ours on a CPU, in float32


def our_step(net: Precond, batch: tuple[Tensor, ...], compiled: bool) -> Callable[[], None]:
    module = DenoisingLoss(net)
    loss = torch.compile(module, fullgraph=True) if compiled else module
    adam = torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.9, 0.99), fused=True)
    ema = PowerFunctionEMA(net)
    clock = iter(range(NIMG, 2 * NIMG, len(batch[0])))

    def step() -> None:
        loss(*batch).loss.mean().backward()
        adam.step()
        adam.zero_grad(set_to_none=True)
        ema.update(next(clock))
        normalize_weights_(net)

    return step


def reference_step(net: nn.Module, batch: tuple[Tensor, ...]) -> Callable[[], None]:
    loss = DenoisingLoss(net)  # type: ignore[arg-type]  # has the interface of Precond
    adam = torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.9, 0.99))
    averages = [[p.detach().clone() for p in net.parameters()] for _ in range(2)]
    powers = [float(sigma_rel_to_gamma(s)) + 1 for s in (0.05, 0.10)]
    clock = iter(range(NIMG, 2 * NIMG, len(batch[0])))

    def step() -> None:
        loss(*batch).loss.mean().backward()
        adam.step()
        adam.zero_grad(set_to_none=True)
        nimg = next(clock)
        with torch.no_grad():
            for average, power in zip(averages, powers, strict=True):
                beta = (1 - len(batch[0]) / nimg) ** power
                for a, p in zip(average, net.parameters(), strict=True):
                    a.lerp_(p, 1 - beta)

    return step


@click.command()
@click.option("--net", "name", type=click.Choice(list(NETWORKS)), default="xxs", show_default=True)
@click.option("--batch-size", default=8, show_default=True)
@click.option("--dtype", default="float32", show_default=True)
@click.option("--rounds", default=9, show_default=True, help="Rounds, each times every variant.")
@click.option("--compile", "compiled", is_flag=True, help="Also time ours under torch.compile.")
@click.option("--device", default="cpu", show_default=True)
def main(name: str, batch_size: int, dtype: str, rounds: int, compiled: bool, device: str) -> None:
    """Time training steps and print a Markdown table.

    \b
    Example:
      python benchmarks/train_step.py --net digits --batch-size 64
    """
    where = torch.device(device)
    torch.manual_seed(0)
    config = PrecondConfig(backbone=NETWORKS[name], dtype=dtype)  # type: ignore[arg-type]
    unet = config.backbone
    shape = (batch_size, unet.img_channels, unet.img_resolution, unet.img_resolution)
    labels = torch.arange(batch_size) % unet.label_dim
    batch = (torch.randn(shape) / 2, labels, torch.rand(batch_size) + 0.1, torch.randn(shape))
    batch = tuple(t.to(where) for t in batch)

    def fresh() -> Precond:
        return Precond(config).to(where).train()

    runs = {"ours": our_step(fresh(), batch, compiled=False)}
    if compiled:
        runs["ours, compiled"] = our_step(fresh(), batch, compiled=True)
    runs["reference"] = reference_step(reference_of(fresh()), batch)
    times: dict[str, list[float]] = {key: [] for key in runs}
    rate = matrix_rate(where, getattr(torch, dtype))
    peaks = {}
    for key, run in runs.items():
        warm = seconds(run, where)
        if where.type == "cuda":
            torch.cuda.reset_peak_memory_stats(where)
        seconds(run, where)
        peaks[key] = ""
        if where.type == "cuda":
            peaks[key] = f"{torch.cuda.max_memory_allocated(where) / 2**30:.2f}"
        if "compiled" in key:
            click.echo(f"{key}: the first step took {warm:.0f} s")
    for _ in range(rounds):
        for key, run in runs.items():
            times[key].append(queued(run, where))
    macs = count_macs(config.backbone).total
    click.echo(
        f"{name}: {config.num_parameters()} parameters, {macs / 1e9:.2f} GMAC, batch {batch_size},"
        f" {dtype}, {rounds} rounds, {where}, {torch.get_num_threads()} threads,"
        f" torch {torch.__version__}, {platform.machine()}, {rate / 1e9:.0f} GFLOP/s at best\n"
    )
    click.echo("| step | seconds, median | img/s | MFU | peak GiB | reference / this (range) |")
    click.echo("|---|---|---|---|---|---|")
    best = 0.0
    for key, taken in times.items():
        median = statistics.median(taken)
        ratios = [r / t for r, t in zip(times["reference"], taken, strict=True)]
        best = max(best, statistics.median(ratios))
        click.echo(
            f"| {key} | {median:.4f} | {batch_size / median:.1f} |"
            f" {6 * macs * batch_size / median / rate:.0%} | {peaks[key]} |"
            f" {statistics.median(ratios):.2f}"
            f" ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    if where.type == "cpu" and dtype == "float32" and name in ("digits", "xxs") and compiled:
        assert best >= CLAIM, f"must be {CLAIM} times as fast as the reference, was {best:.2f}"


if __name__ == "__main__":
    main()
