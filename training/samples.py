"""Grids of images from the averages, to look at while a run goes on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edm2lite.atomic import replacing
from edm2lite.diffusion.precond import Precond
from edm2lite.ema import PowerFunctionEMA
from edm2lite.image_grid import arrange, png
from edm2lite.models.encoders import Encoder
from edm2lite.network.conditioning import values_of
from edm2lite.sampling.guidance import Conditioned
from edm2lite.sampling.levels import karras_sigmas
from edm2lite.sampling.solvers import heun
from edm2lite.seeding import Purpose, normals, rng

SIDE = 512  # pixels; small images are enlarged by a whole factor to about this


def sample_grids(
    net: Precond,
    ema: PowerFunctionEMA,
    encoder: Encoder,
    *,
    count: int,
    num_steps: int,
    batch_size: int,
) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """(sigma_rel, image [H, W, C]) of each tracked average: samples of seeds 0 to ``count`` - 1.

    Classes follow each other, the same seeds always start from the same noise, and the network is
    left as it was. Every rank of a sharded network must call this.
    """
    network = net.config.backbone
    device = next(net.parameters()).device
    sigmas = karras_sigmas(num_steps).float().to(device)
    shape = (network.img_channels, network.img_resolution, network.img_resolution)
    for sigma_rel in ema.sigma_rels:
        images = []
        net.eval()
        with ema.applied(sigma_rel):
            for begin in range(0, count, batch_size):
                seeds = range(begin, min(begin + batch_size, count))
                x = normals([rng(seed, 0, Purpose.GENERATION) for seed in seeds], shape).to(device)
                told = values_of(network.conditions, "in_turn", seeds).to(device)
                x = heun(Conditioned(net, told), x * sigmas[0], sigmas)
                images.append(encoder.decode(x).cpu())
        net.train()
        yield sigma_rel, tile(torch.cat(images).numpy())


def tile(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[N, C, H, W] -> [rows * H, columns * W, C]: one picture, enlarged if small."""
    num, _, height, width = images.shape
    columns = math.ceil(math.sqrt(2 * num))
    rows = math.ceil(num / columns)
    zoom = max(1, SIDE // max(rows * height, columns * width))
    return arrange(images, columns, zoom=zoom, background=0).transpose(1, 2, 0)


def save_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write [H, W, 1 or 3] uint8 as PNG, atomically."""
    with replacing(path, "wb") as file:
        file.write(png(picture.transpose(2, 0, 1)))
