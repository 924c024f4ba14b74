"""How fast a run will go: a few of its steps, timed before it starts."""

from __future__ import annotations

import statistics
import time

import torch

from edm2lite.diffusion.objective import DenoisingLoss
from edm2lite.diffusion.precond import Precond
from edm2lite.ema import PowerFunctionEMA
from edm2lite.network.layers import normalize_weights_
from edm2lite.network.told import examples

from .config import RunConfig
from .optimizer import adam, training_arithmetic


def images_per_second(config: RunConfig, device: torch.device, num_steps: int = 4) -> float:
    """Images per second of one process, measured on random images; the run itself is untouched.

    Forward and backward pass, Adam, both averages and weight normalization are timed, as in the
    training loop. Reading images, snapshots, checkpoints and grids come on top.

    Args:
        config: Configuration of the run.
        device: Device that computes.
        num_steps: Number of timed steps, of which the median counts. One goes before them.

    Example:
        >>> from edm2lite.training import load_config
        >>> images_per_second(load_config("digits"), torch.device("cpu"), num_steps=1) > 0
        True
    """
    network = config.net.backbone
    num_passes = -(-config.batch_size // config.microbatch)
    generators = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with training_arithmetic(config.threads), generators:
        torch.manual_seed(config.seed)
        net = Precond(config.net).train().to(device)
        loss = DenoisingLoss(net, config.weighting)
        optimizer, ema = adam(net, config.optim, device), PowerFunctionEMA(net, (0.05, 0.10))
        side, num = network.img_resolution, min(config.microbatch, config.batch_size)
        shape = (num, network.img_channels, side, side)
        told = examples(network.conditions, num, side, side).to(device)
        images, noise = 0.5 * torch.randn(shape, device=device), torch.randn(shape, device=device)
        sigma = torch.randn(num, device=device).exp()
        seconds = []
        for step in range(1, num_steps + 2):
            _wait(device)
            begin = time.perf_counter()
            for _ in range(num_passes):
                torch.autograd.backward(loss(images, told, sigma, noise).loss.mean())
            optimizer.step()
            optimizer.zero_grad()
            ema.update(step * config.batch_size)
            normalize_weights_(net)
            _wait(device)
            seconds.append(time.perf_counter() - begin)
    return config.batch_size / statistics.median(seconds[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
