"""Sampling against the straightforward loop: the same network and steps in the same run.

The straightforward loop is what one writes from the papers: Heun's method on a batch, one batch
after the other, with the network of ``reference.py``, which normalizes its weights in every call.
Ours is ``edm2lite.sampling.ImageGenerator``: weights prepared once and, on a CPU, a batch per
thread; without and with torch.compile. All compute in float32 on a CPU, in bfloat16 on a GPU, and
are timed in turn after one run each to warm up. Compiling takes a minute or two per network.
"""

from __future__ import annotations

import dataclasses
import functools
import platform
import statistics
from collections.abc import Callable

import click
import torch
from networks import NETWORKS
from reference import reference_denoiser
from timing import seconds

from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.models.encoders import PixelEncoder
from edm2lite.models.loading import Model
from edm2lite.network.unet import UNetConfig
from edm2lite.sampling.images import ImageGenerator
from edm2lite.sampling.levels import karras_sigmas
from edm2lite.sampling.settings import Sampling

CLAIMS = {
    "cpu": (1.3, 1.5)
}  # of the slowest network: as it is, compiled; of a GPU none is measured


def network(config: UNetConfig, device: torch.device) -> Precond:
    """Random weights, with gains that let every layer reach the output."""
    torch.manual_seed(0)
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    net = Precond(PrecondConfig(backbone=config, dtype=dtype))
    for name, parameter in net.named_parameters():
        if name.endswith("gain"):
            parameter.data.fill_(0.5)
    return net.eval().requires_grad_(False).to(device)


def straightforward(
    net: Precond, num: int, num_steps: int, batch_size: int, device: torch.device
) -> Callable[[], None]:
    """A run of the plain loop over ``num`` images."""
    denoise = reference_denoiser(net)
    unet = net.config.backbone
    sigmas = karras_sigmas(num_steps).float().to(device)

    @torch.no_grad()
    def run() -> None:
        for begin in range(0, num, batch_size):
            n = min(batch_size, num - begin)
            labels = torch.randint(unet.label_dim, (n,), device=device)
            x = torch.randn(n, unet.img_channels, *2 * [unet.img_resolution], device=device)
            x = x * sigmas[0]
            for i in range(num_steps):
                d = (x - denoise(x, sigmas[i], labels)) / sigmas[i]
                ahead = x + (sigmas[i + 1] - sigmas[i]) * d
                if i < num_steps - 1:
                    d_ahead = (ahead - denoise(ahead, sigmas[i + 1], labels)) / sigmas[i + 1]
                    ahead = x + (sigmas[i + 1] - sigmas[i]) * (d + d_ahead) / 2
                x = ahead
            (x * 127.5 + 128).clip(0, 255).to(torch.uint8).cpu()

    return run


@click.command()
@click.option("--networks", default="digits,cifar,xxs", show_default=True)
@click.option("--num", default=512, show_default=True, help="Images of 8x8; fewer of larger ones.")
@click.option("--steps", default=4, show_default=True, help="Steps of Heun's method.")
@click.option("--rounds", default=5, show_default=True, help="Rounds, each times both.")
@click.option("--batch", default=64, show_default=True, help="Images per batch.")
@click.option("--threads", default=0, help="Number of CPU threads. [default: as torch chooses]")
@click.option("--device", default="cpu", show_default=True)
def main(
    networks: str, num: int, steps: int, rounds: int, batch: int, threads: int, device: str
) -> None:
    """Time the generation of images and print a Markdown table.

    \b
    Example:
      python benchmarks/sample.py --threads 2
    """
    if threads:
        torch.set_num_threads(threads)
    where = torch.device(device)
    click.echo(
        f"Heun, {steps} steps, {rounds} rounds, {where}, {torch.get_num_threads()} threads,"
        f" torch {torch.__version__}, {platform.machine()}\n"
    )
    click.echo("| network | images | loop, img/s | ours | compiled | faster by | compiled by |")
    click.echo("|---|---|---|---|---|---|---|")
    worst = [float("inf")] * 2
    for name in networks.split(","):
        config = NETWORKS[name]
        count = num if where.type == "cuda" else max(2, num * 64 // config.img_resolution**2)
        model = Model(name, network(config, where), PixelEncoder(), {})
        ours = ImageGenerator(
            model, range(count), sampling=Sampling(num_steps=steps), batch_size=batch, device=where
        )
        runs: list[Callable[[], object]] = [
            straightforward(model.net, count, steps, min(batch, count), where),
            functools.partial(list, ours),
            functools.partial(list, dataclasses.replace(ours, compiled=True)),
        ]
        times = [[seconds(run, where) for run in runs] for _ in range(rounds + 1)][1:]
        plain, *fast = (statistics.median(column) for column in zip(*times, strict=True))
        ratios = [[row[0] / row[i] for row in times] for i in (1, 2)]
        worst = [min(w, statistics.median(r)) for w, r in zip(worst, ratios, strict=True)]
        cells = [f"{count / t:.2f}" for t in (plain, *fast)]
        cells += [f"{statistics.median(r):.2f} ({min(r):.2f} to {max(r):.2f})" for r in ratios]
        click.echo(f"| {name} | {count} | {' | '.join(cells)} |")
    for claim, ratio in zip(CLAIMS.get(where.type, (0.0, 0.0)), worst, strict=True):
        assert ratio >= claim, f"must be {claim} times as fast as the loop, was {ratio:.2f}"


if __name__ == "__main__":
    main()
