"""A model of training and sampling on H100 and H200: arithmetic on what was counted, not measured.

All of it is compiled. Counted on a CPU: multiply-accumulates and bytes of every convolution (here,
from the shapes of the layers), generated kernels and their bytes (``kernels.py``, of XS; S has half
as many bytes again, as it has channels), launches after the backward passes
(tests/training/test_tail.py). Assumed: the ceilings below, and the share of the matrix rate that
convolutions of cuDNN reach, the great unknown: 55, 70 and 80 %. A convolution takes the longer of
its arithmetic and its traffic; generated kernels take their traffic; every launch costs 1.5 us;
nothing overlaps. ``gpu_check.py`` measures all of these.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click
import torch
from networks import NETWORKS

from edm2lite.diffusion.precond import PrecondConfig
from edm2lite.network.flops import Macs, count_macs
from edm2lite.network.layers import MPConv, mp_layers
from edm2lite.network.told import examples
from edm2lite.plotting.figure import new_figure, save_figure

MATRIX = 790e12  # FLOP/s of large products in bfloat16, as people measure on H100 and H200
BANDWIDTH = {"H100": 3.0e12, "H200": 4.3e12}  # bytes per second of large copies
LAUNCH = 1.5e-6  # seconds from the end of a kernel to the next one, at best
ATTENTION = 0.4  # of MATRIX
EFFICIENCIES = (0.55, 0.70, 0.80)  # of MATRIX, in convolutions
LINK = 380e9  # bytes per second of an all-reduce on NVLink, per direction
MICROBATCH, BATCH = 64, 256  # per GPU


@dataclass(frozen=True)
class Counts:
    """What a GPU is asked for, of XS.

    Attributes:
        launches: Kernels of a micro-batch of 64, forward and backward, those of libraries included.
        gigabytes: What generated kernels of a micro-batch read and write.
        step_launches: Kernels of a step besides: of weights, and after the backward passes.
        step_gigabytes: What those of the weights read and write.
        tail_bytes: What those after the backward passes read and write, per parameter.
    """

    launches: int
    gigabytes: float
    step_launches: int
    step_gigabytes: float
    tail_bytes: int


COUNTS = {
    "0.6.0": Counts(933 + 740, 29.3, 1160, 0.0, 98),
    "0.7.0": Counts(327 + 740, 22.4, 587 + 124, 3.9, 80),  # 20 gradients, 28 Adam, 20 EMA, 12 norm
}
WIDER = {"XS": 1.0, "S": 1.5}  # bytes of generated kernels over those of XS
SAMPLING = {"launches": 392, "gigabytes": 15.2}  # an evaluation of S for 64 images
VAE_FLOPS, VAE_SHARE = 2.51e12, 0.4  # decoding one image of 512x512, and the share of MATRIX


@cache
def macs(name: str) -> Macs:
    """Multiply-accumulates of a network for one image."""
    return count_macs(NETWORKS[name.lower()])


@cache
def parameters(name: str) -> int:
    """Number of parameters of a network."""
    return PrecondConfig(backbone=NETWORKS[name.lower()]).num_parameters()


@cache
def convolutions(name: str) -> list[tuple[float, float]]:
    """FLOPs and bytes of each convolution for one image, in half precision."""
    config = NETWORKS[name.lower()]
    found: list[tuple[float, float]] = []

    def count(layer: MPConv, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if output.ndim == 4:
            kernel = layer.weight.shape[1:].numel()
            macs = kernel * output.numel() - layer.saved_macs(output)
            found.append((2 * macs, 2 * (given[0].numel() + output.numel())))

    with torch.device("meta"), torch.no_grad():
        net = config.build().eval()
        for layer in mp_layers(net):
            layer.register_forward_hook(count)
        side = config.img_resolution
        x = torch.empty(1, config.img_channels, side, side)
        net(x, torch.empty(1), examples(config.conditions, 1, side, side))
    return found


def parts(name: str, counts: Counts, gpu: str, efficiency: float) -> dict[str, float]:
    """Milliseconds of a step of 256 images on one GPU."""
    bandwidth, times = BANDWIDTH[gpu], BATCH / MICROBATCH
    once = sum(max(f / (efficiency * MATRIX), b / bandwidth) for f, b in convolutions(name))
    moved = 1e9 * WIDER[name] * (times * counts.gigabytes + counts.step_gigabytes)
    seconds = {
        "convolutions": 3 * once * BATCH,
        "attention": 2 * 3.5 * macs(name).matmul * BATCH / (ATTENTION * MATRIX),
        "generated kernels": moved / bandwidth,
        "launches": (times * counts.launches + counts.step_launches) * LAUNCH,
        "after the backward passes": counts.tail_bytes * parameters(name) / bandwidth,
    }
    return {part: 1e3 * value for part, value in seconds.items()}


def exchange(name: str, gpus: int) -> float:
    """Milliseconds of adding up float32 gradients over GPUs of one machine, none of it hidden."""
    return 1e3 * 2 * (gpus - 1) / gpus * 4 * parameters(name) / LINK


def training_table() -> None:
    click.echo("| network | GPUs | " + " | ".join(f"{e:.0%}" for e in EFFICIENCIES) + " |")
    click.echo("|---|---|---|---|---|")
    for name, gpu, gpus in itertools.product(WIDER, BANDWIDTH, (1, 8)):
        cells = []
        for efficiency in EFFICIENCIES:
            step = sum(parts(name, COUNTS["0.7.0"], gpu, efficiency).values())
            rate = 1e3 * gpus * BATCH / (step + exchange(name, gpus))
            flops = 6 * macs(name).total * rate / gpus
            cells.append(f"{float(f'{rate:.3g}'):.0f} img/s ({100 * flops / MATRIX:.0f} %)")
        click.echo(f"| {name} | {gpus} {gpu} | {' | '.join(cells)} |")


def sampling_table() -> None:
    click.echo("\n| S, 63 evaluations, 512x512 | " + " | ".join(BANDWIDTH) + " |\n|---|---|---|")
    rates = []
    for bandwidth in BANDWIDTH.values():
        low_high = []
        for efficiency in EFFICIENCIES:
            layers = convolutions("S")
            seconds = 64 * sum(max(f / (efficiency * MATRIX), b / bandwidth) for f, b in layers)
            seconds += SAMPLING["gigabytes"] * 1e9 / bandwidth + SAMPLING["launches"] * LAUNCH
            seconds += 64 * VAE_FLOPS / (VAE_SHARE * MATRIX) / 63
            low_high.append(64 / (63 * seconds))
        rates.append(" - ".join(f"{rate:.0f}" for rate in low_high))
    click.echo(f"| img/s with decoding, at {EFFICIENCIES[0]:.0%} - ... | {' | '.join(rates)} |")


def draw(path: Path) -> None:
    """Stacked parts of a step, one bar per network, version and GPU."""
    bars = {
        f"{name}, {version}, {gpu}": parts(name, counts, gpu, 0.70)
        for name, gpu, (version, counts) in itertools.product(WIDER, BANDWIDTH, COUNTS.items())
    }
    figure = new_figure((7.5, 0.6 + 0.42 * len(bars)))
    axes = figure.add_subplot()
    left = [0.0] * len(bars)
    for i, part in enumerate(next(iter(bars.values()))):
        widths = [1e3 * bar[part] / BATCH for bar in bars.values()]
        axes.barh(list(bars), widths, left=left, label=part, color=f"C{i}", height=0.7)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for y, total in enumerate(left):
        axes.text(total, y, f" {1e6 / total:.0f} img/s", va="center", fontsize=8)
    axes.set_xlim(0, 1.18 * max(left))
    axes.invert_yaxis()
    axes.set_xlabel(
        "microseconds per image, by the model (convolutions at 70 % of the matrix rate)"
    )
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.45, 1.0))
    save_figure(path, figure)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/images/gpu_model.png"))
def main(out: Path) -> None:
    """Print the model's tables and draw the parts of a training step.

    \b
    Example:
      python benchmarks/plot_gpu.py --out docs/images/gpu_model.png
    """
    training_table()
    sampling_table()
    draw(out)


if __name__ == "__main__":
    main()
