"""How much of a denoiser's rate ``generate`` delivers as PNG files, with a GPU that is simulated.

The network sleeps as long as a GPU would compute, and the images are 512x512 noise that makes PNG
files as large as photographs do, so that encoding costs what it costs: the processor is free while
the network sleeps, as it is while a GPU computes. A batch of 64 images by 32 steps of Heun's method
is 63 evaluations. The same batches are made without being written, in turn: that is the denoiser's
own rate, to which the last batch adds the time of writing it. Sleeping alone is the rate of a
denoiser whose steps in Python take no time.
"""

from __future__ import annotations

import collections
import os
import platform
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.models.encoders import Encoder
from edm2lite.models.loading import Model
from edm2lite.network.backbone import Backbone, BackboneConfig
from edm2lite.network.conditioning import Conditioning
from edm2lite.sampling.generation import fill
from edm2lite.sampling.image_folder import ImageFolder
from edm2lite.sampling.images import ImageGenerator
from edm2lite.sampling.settings import Sampling

CLAIM = 0.85
BATCH = 64  # of the 8x8 latents below, on a CPU


@dataclass(frozen=True, kw_only=True)
class SleeperConfig(BackboneConfig):
    kind: str = "generate:SleeperConfig"
    img_resolution: int = 8
    img_channels: int = 4
    seconds: float = 0.03

    def build(self) -> Backbone:
        return Sleeper(self)


class Sleeper(Backbone):
    """A network that takes its time and no processor."""

    def __init__(self, config: SleeperConfig):
        super().__init__()
        self.config = config

    def forward(self, x: Tensor, c_noise: Tensor, conditioning: Conditioning) -> Tensor:
        time.sleep(self.config.seconds)
        return x


@dataclass(frozen=True, kw_only=True)
class Stock(Encoder):
    """Decodes every latent to one of some images that were made before."""

    kind: str = "generate:Stock"

    def encode(self, raw: Tensor, noise: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def decode(self, x: Tensor) -> Tensor:
        return IMAGES[torch.arange(len(x)) % len(IMAGES)]


def photograph(seed: int, side: int = 512) -> np.ndarray:
    """Noise whose amplitude falls as f^-1.5, in three similar channels, uint8 [3, H, W]."""
    rng = np.random.default_rng(seed)
    f = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)) ** 1.5
    f[0, 0] = np.inf
    gray, *colors = (
        np.fft.irfft2(np.fft.rfft2(rng.standard_normal((side, side))) / f) for _ in range(4)
    )
    pixels = np.stack([gray / gray.std() + 0.2 * c / c.std() for c in colors])
    pixels = 128 + 50 * pixels + rng.normal(0, 1, pixels.shape)
    return pixels.clip(0, 255).astype(np.uint8)


IMAGES = torch.from_numpy(np.stack([photograph(i) for i in range(8)]))


@click.command()
@click.option("--num", default=512, show_default=True, help="Number of images.")
@click.option("--steps", default=32, show_default=True, help="Steps of Heun's method.")
@click.option("--seconds", default=0.03, show_default=True, help="Time of an evaluation and batch.")
@click.option("--rounds", default=3, show_default=True, help="Rounds.")
def main(num: int, steps: int, seconds: float, rounds: int) -> None:
    """Time the generation of PNG files and print a Markdown table.

    \b
    Example:
      python benchmarks/generate.py
    """
    torch.set_num_threads(1)  # one batch at a time, as on a GPU
    config = PrecondConfig(backbone=SleeperConfig(seconds=seconds))
    model = Model("sleeper", Precond(config).eval(), Stock(), {})
    generator = ImageGenerator(model, range(num), sampling=Sampling(num_steps=steps))
    assert generator.rows == BATCH
    slept = BATCH / ((2 * steps - 1) * seconds)
    own, rates, cpu, size = [], [], [], 0.0
    for _ in range(rounds):
        folder = Path(tempfile.mkdtemp())
        start = time.perf_counter()
        collections.deque(generator, maxlen=0)
        own.append(num / (time.perf_counter() - start))
        start, used = time.perf_counter(), time.process_time()
        fill([generator], [ImageFolder(folder / "images")])
        rates.append(num / (time.perf_counter() - start))
        cpu.append((time.process_time() - used) / num)
        size = sum(p.stat().st_size for p in folder.rglob("*.png")) / num
        shutil.rmtree(folder)
    click.echo(
        f"{num} images of 512x512, {size / 1e3:.0f} kB each, batches of {BATCH}, {steps} steps of"
        f" Heun's method, {1e3 * seconds:.0f} ms per evaluation, {rounds} rounds,"
        f" {os.cpu_count()} cores, torch {torch.__version__}, {platform.machine()}\n"
    )
    click.echo(
        "| sleeping alone, img/s | not written | written | share (range) | CPU ms per image |"
    )
    click.echo("|---|---|---|---|---|")
    shares = [rate / o for rate, o in zip(rates, own, strict=True)]
    share = statistics.median(shares)
    click.echo(
        f"| {slept:.1f} | {statistics.median(own):.1f} | {statistics.median(rates):.1f} |"
        f" {share:.2f} ({min(shares):.2f} to {max(shares):.2f}) |"
        f" {1e3 * statistics.median(cpu):.0f} |"
    )
    assert share >= CLAIM, f"must deliver {CLAIM} of the denoiser's rate, was {share:.2f}"


if __name__ == "__main__":
    main()
