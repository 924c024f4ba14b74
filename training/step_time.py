"""How fast a run will go: a few of its steps, timed before it starts, and ways to be faster."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from edm2lite.diffusion.objective import DenoisingLoss
from edm2lite.diffusion.precond import Precond
from edm2lite.ema import PowerFunctionEMA
from edm2lite.network.layers import normalize_weights_
from edm2lite.network.told import examples

from .config import RunConfig
from .optimizer import adam, training_arithmetic

BFLOAT16_FROM = 1.25
"""Factor by which bfloat16 has to be faster on a CPU to be chosen; some only emulate it."""


class Fastest(NamedTuple):
    """The fastest way in which a device can carry out a run.

    Attributes:
        speed: Images per second.
        values: Field of the configuration -> value.
        reasons: Field -> value and reason in words.
    """

    speed: float
    values: dict[str, Any]
    reasons: dict[str, str]


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


def fastest(config: RunConfig, device: torch.device, stated: Sequence[str] = ()) -> Fastest:
    """Number of threads and type in which a CPU computes a run fastest; on a GPU its speed alone.

    Several threads wait for each other after every operation: where other programs run too, or a
    network is small, one alone may be as fast.

    Args:
        config: Configuration of the run.
        device: Device that computes.
        stated: Fields that stay as they are.
    """
    speed = images_per_second(config, device)
    values: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    num = torch.get_num_threads()
    if device.type == "cpu" and num > 1 and "threads" not in stated:
        alone = dataclasses.replace(config, threads=1)
        found = images_per_second(alone, device)
        if found >= speed:
            reasons["threads"] = f"1, {found / speed:.1f} times as fast here as {num} together"
            config, speed, values["threads"] = alone, found, 1
    if device.type == "cpu" and "net.dtype" not in stated:
        net = dataclasses.replace(config.net, dtype="bfloat16")
        found = images_per_second(dataclasses.replace(config, net=net), device)
        if found >= BFLOAT16_FROM * speed:
            reasons["net.dtype"] = f"bfloat16, {found / speed:.1f} times as fast here as float32"
            speed, values["net.dtype"] = found, "bfloat16"
    if device.type == "cuda":  # the peak that the run reports is to be its own
        torch.cuda.reset_peak_memory_stats(device)
    return Fastest(speed, values, reasons)
