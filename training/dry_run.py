"""What a run will cost, before it starts: its computation, its files and its memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edm2lite import processes
from edm2lite.dataset import ImageDataset
from edm2lite.diffusion.objective import DenoisingLoss
from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.dtypes import torch_dtype
from edm2lite.ema import planning
from edm2lite.network.backbone import BackboneConfig
from edm2lite.network.flops import count_macs
from edm2lite.network.told import examples
from edm2lite.units import format_amount, format_bytes, format_duration

from .config import RunConfig
from .manifest import finished
from .overview import describe_data, device_name
from .preparation import prepare
from .step_time import images_per_second
from .tuning import begin

RANGE = (0.02, 0.25)
"""EMA lengths between which the largest error of reconstruction is reported."""

TIMED, MOST_TIMED = 3e10, 1e11
"""Floating-point operations of a step that a CPU is timed on, and most of one image."""

MOMENTS = 2
"""Number of float32 tensors that Adam keeps for each parameter."""


class Sizes(NamedTuple):
    """How many numbers a run has to do with.

    Attributes:
        all: Number of parameters.
        trained: Number of those that are trained.
        averaged: Number of values in an average.
    """

    all: int
    trained: int
    averaged: int


def report(config: RunConfig, run_dir: Path, world_size: int) -> str:
    """The configuration and a table of costs; nothing is written.

    The configuration is complete but for statistics of captions. The time is that of a step on the
    device of this process, on random images; everything else is computed from shapes.

    Args:
        config: Configuration of the run.
        run_dir: Folder of the run, which need not exist.
        world_size: Number of processes that will share the work.

    Raises:
        ValueError, FileNotFoundError, ImportError: As
            :func:`edm2lite.training.preparation.prepare` does.

    Example:
        >>> from edm2lite.training import load_config
        >>> text = report(load_config("digits"), Path("runs/digits"), world_size=1)
        >>> print(next(line for line in text.splitlines() if line.startswith("steps")))
        steps        1000 of 64 images: 1 x 64, forward passes in each: 1
    """
    prepared = prepare(config, run_dir, world_size)
    config, dataset = prepared.config, prepared.dataset
    with torch.device("meta"):
        net = Precond(config.net)
        tuned = begin(config, net, prepared.base)
        sizes = Sizes(
            sum(p.numel() for p in net.parameters()),
            sum(p.numel() for p in net.parameters() if p.requires_grad),
            sum(t.numel() for t in tuned.averaged().values()),
        )
    rows = [
        ("data", describe_data(dataset)),
        *_prior(config, prepared.prior),
        ("run", _start(config, run_dir)),
        *_work(config, world_size, sizes),
        ("time", _time(config, world_size, processes.device())),
        *_disk(config, sizes),
        *_memory(config, world_size, sizes),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:{width}}  {text}" for name, text in rows]
    if config.text is not None:  # hundreds of numbers, which anyone can measure again
        config = dataclasses.replace(config, text=config.text.unmeasured())
    return config.to_yaml() + "\n" + "\n".join(lines)


def activation_bytes(config: PrecondConfig, num_images: int) -> int:
    """Bytes that a forward pass of the loss keeps for its backward pass, without parameters.

    The pass runs on the meta device, which needs no memory, and every tensor that autograd keeps is
    counted once. torch.compile keeps less.

    Args:
        config: The denoiser.
        num_images: Number of images in the pass.
    """
    with torch.device("meta"):
        return kept_bytes(DenoisingLoss(Precond(config)).train(), config.backbone, num_images)


def kept_bytes(loss: DenoisingLoss, network: BackboneConfig, num_images: int) -> int:
    """As :func:`activation_bytes`, for a loss that is on the meta device already."""
    with torch.device("meta"):
        side = network.img_resolution
        images = torch.empty(num_images, network.img_channels, side, side)
        told = examples(network.conditions, num_images, side, side)
    return kept_in(lambda: loss(images, told, images[:, 0, 0, 0], torch.empty_like(images)), loss)


def kept_in(run: Callable[[], object], module: nn.Module) -> int:
    """Bytes that autograd keeps during ``run``, each storage once, without parameters.

    Args:
        run: Function that computes something with gradients.
        module: Module whose parameters are not counted.
    """
    own = {_storage(p) for p in module.parameters()}
    kept: dict[int, Tensor] = {}  # holding the tensors keeps the keys distinct

    def keep(tensor: Tensor) -> Tensor:
        kept[_storage(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in own)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _prior(config: RunConfig, images: ImageDataset | None) -> Iterable[tuple[str, str]]:
    if images is not None and config.prior is not None:
        made = "" if config.prior.source is not None else ", generated before the first step"
        yield "prior", f"half of every batch: {len(images)} images, {images.name}{made}"


def _start(config: RunConfig, run_dir: Path) -> str:
    found = finished(run_dir / "checkpoints")
    if found:
        return f"{run_dir}, continued from nimg = {int(found[-1].name)} of {config.total_nimg}"
    return f"{run_dir}, from the start"


def _work(config: RunConfig, world_size: int, sizes: Sizes) -> Iterable[tuple[str, str]]:
    share = config.batch_size // world_size
    passes = -(-share // config.microbatch)
    macs = count_macs(config.net.backbone).total
    few = f", of which {sizes.trained} are trained" if sizes.trained < sizes.all else ""
    yield "parameters", f"{sizes.all}{few}"
    yield "GMACs", f"{macs / 1e9:.4g} per image and evaluation; training takes 3 times that"
    yield (
        "steps",
        f"{-(-config.total_nimg // config.batch_size)} of {config.batch_size} images:"
        f" {world_size} x {share}, forward passes in each: {passes}",
    )
    yield (
        "compute",
        f"{_operations(config) * config.total_nimg:.3g} floating-point operations in all",
    )


def _time(config: RunConfig, world_size: int, device: torch.device) -> str:
    """How long the run will take, by a step that is timed now; the step is small on a CPU."""
    num, cost = min(config.microbatch, config.batch_size // world_size), _operations(config)
    if device.type == "cpu":
        num = min(num, max(1, int(TIMED // cost)))
        if cost > MOST_TIMED:
            return f"not measured: this CPU is too slow for {cost:.2g} operations per image"
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    if free is not None and (needed := _bytes(config, num)) > free:
        return f"not measured: needs {format_bytes(needed)}, free are {format_bytes(free)}"
    speed = images_per_second(_step_of(config, num), device, num_steps=1 if free is None else 4)
    many = f", and {world_size} processes that do not slow each other" if world_size > 1 else ""
    seconds = config.total_nimg / speed / world_size
    return (
        f"{format_duration(seconds)} in all, by a step of {num} images at"
        f" {format_amount(speed)} img/s ({device_name(device)}{many}); reading images, files and"
        " samples come on top"
    )


def _operations(config: RunConfig) -> int:
    """Floating-point operations of training on one image."""
    return 6 * count_macs(config.net.backbone).total


def _bytes(config: RunConfig, num_images: int) -> int:
    """Bytes of weights, gradients, moments, averages and activations of a step."""
    copies = 2 + MOMENTS + len(config.ema.sigma_rels)
    return 4 * copies * config.net.num_parameters() + activation_bytes(config.net, num_images)


def _step_of(config: RunConfig, num: int) -> RunConfig:
    """The configuration of a run of a single step of ``num`` images."""
    names = ("batch_size", "total_nimg", "status_nimg", "snapshot_nimg", "checkpoint_nimg")
    counts: dict[str, Any] = dict.fromkeys(names, num)
    none: dict[str, Any] = {"sample_nimg": 0, "magnitudes_nimg": 0, "validation": None, "hooks": ()}
    return dataclasses.replace(config, **counts, **none)


def _disk(config: RunConfig, sizes: Sizes) -> Iterable[tuple[str, str]]:
    plan = planning.assess(
        config.ema.sigma_rels,
        min(config.snapshot_nimg, config.total_nimg),
        config.ema.dtype,
        duration=config.total_nimg,
        num_params=sizes.averaged,
        target_sigma_rels=planning.lengths_between(*RANGE),
    )
    yield "snapshots", f"{plan.num_files} files of {plan.dtype}, {format_bytes(plan.num_bytes)}"
    yield (
        "error",
        f"at most {plan.worst_error:.1e} (at sigma_rel {plan.worst_sigma_rel:.3f}) for lengths"
        f" {RANGE[0]} to {RANGE[1]}; see edm2lite plan --help",
    )
    one = 4 * (sizes.trained * (1 + MOMENTS) + sizes.averaged * len(config.ema.sigma_rels))
    count = config.keep_checkpoints + 1  # the oldest goes when the newest is complete
    yield "checkpoints", f"{format_bytes(one)} each, at most {count} at a time"


def _memory(config: RunConfig, world_size: int, sizes: Sizes) -> Iterable[tuple[str, str]]:
    parts = world_size if config.parallel == "fsdp" else 1
    num_images = min(config.microbatch, config.batch_size // world_size)
    averages = len(config.ema.sigma_rels)
    weights, state, average = (4 * size // parts for size in sizes)
    activations = activation_bytes(config.net, num_images)
    total = weights + state * (1 + MOMENTS) + average * averages + activations
    copies = ""
    if config.compile and parts == 1:  # see edm2lite/network/kernels/step_weights.py
        size = torch_dtype(config.net.dtype).itemsize * (sizes.all + sizes.trained) + state
        total, copies = (
            total + size,
            f" copies of weights and their gradients {format_bytes(size)},",
        )
    yield (
        "memory",
        f"{format_bytes(total)} per process: weights {format_bytes(weights)}, gradients"
        f" {format_bytes(state)}, Adam {format_bytes(MOMENTS * state)}, {averages} averages"
        f" {format_bytes(averages * average)},{copies} activations {format_bytes(activations)}",
    )
    yield (
        "",
        f"(computed from shapes, activations for {num_images} images as autograd keeps them;"
        " kernels and the allocator come on top)",
    )
    staged = state * (1 + MOMENTS) + average * averages
    stored = planning.ITEM_BYTES[config.ema.dtype] * sizes.averaged * averages
    yield (
        "host memory",
        f"{format_bytes(staged)} per process while a checkpoint is written,"
        f" {format_bytes(stored)} on rank 0 while snapshots are",
    )
