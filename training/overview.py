"""What a run is and what comes after it, in a few lines for the person who starts it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import torch

from edm2lite.dataset import ImageDataset
from edm2lite.messages import one_line
from edm2lite.models.class_names import class_title
from edm2lite.network.conditions import described
from edm2lite.units import format_amount, format_percent

from . import distributed
from .samples import sample_interval

if TYPE_CHECKING:
    from .trainer import Trainer

_SHOWN = 8  # names of classes


def overview(trainer: Trainer) -> list[str]:
    """Lines that say what is trained, on what, with what, from where and to where.

    Args:
        trainer: The trainer, before its first step.
    """
    config, run_dir = trainer.config, trainer.run_dir
    if trainer.nimg >= config.total_nimg:
        return [_finished(trainer)]
    rows = {
        "device": _device(trainer),
        "network": _network(trainer),
        "data": describe_data(trainer.dataset),
        "length": f"{-(-config.total_nimg // config.batch_size)} steps of {config.batch_size}"
        f" images, {format_amount(config.total_nimg)} images in all",
        "precision": config.net.dtype + (", compiled" if config.compile else ""),
        "averages": "EMA length "
        + " and ".join(format_percent(s) for s in config.ema.sigma_rels)
        + f", a snapshot of each every {format_amount(config.snapshot_nimg)} images",
        "start": _start(trainer),
        "files": f"{run_dir}: checkpoints every {format_amount(config.checkpoint_nimg)} images,"
        f" {_samples(trainer)}, what is said here in log.txt",
    }
    width = max(map(len, rows))
    return [f"{name:{width}}  {text}" for name, text in rows.items()]


def next_commands(trainer: Trainer) -> list[str]:
    """Commands that go on from a run that has ended, each ready to be copied.

    Args:
        trainer: The trainer, after its last step.
    """
    config, run = trainer.config, shlex.quote(str(trainer.run_dir))
    lengths = config.ema.sigma_rels
    length = 0.1 if 0.1 in lengths else sorted(lengths)[len(lengths) // 2]
    average = shlex.quote(f"{trainer.run_dir}@sigma_rel={length:g}")
    return [
        f"edm2lite sweep {run}",
        f"edm2lite play {run}",
        f"edm2lite generate {average}{_told(trainer)} --grid grid.png",
    ]


def describe_data(dataset: ImageDataset) -> str:
    """A data set in one line: its name, images, what a network can be told, names of classes."""
    size = " x ".join(map(str, dataset.image_shape))
    kind = "images" if dataset.encoder is None else "latents"
    told = described(dataset.conditions) if dataset.conditions else "no classes"
    names = dataset.class_names
    if names:
        shown = ", ".join(class_title(names, k) for k in range(min(len(names), _SHOWN)))
        told += f" ({shown}{', ...' if len(names) > _SHOWN else ''})"
    return f"{dataset.name}: {len(dataset)} {kind} of {size}, {told}"


def device_name(device: torch.device) -> str:
    """The name of a device: that of a GPU, or the number of threads of a CPU."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def _device(trainer: Trainer) -> str:
    world = distributed.world_size()
    many = f", {world} processes ({trainer.config.parallel})" if world > 1 else ""
    return device_name(trainer.device) + many


def _network(trainer: Trainer) -> str:
    config = trainer.config
    sizes = [(p.numel(), p.requires_grad) for p in trainer.net.parameters()]
    total, trained = sum(n for n, _ in sizes), sum(n for n, is_trained in sizes if is_trained)
    few = f", {format_amount(trained)} of them trained" if trained < total else ""
    kind = f" ({config.tune.kind})" if config.tune is not None else ""
    return f"{config.net.backbone.kind}, {format_amount(total)} parameters{few}{kind}"


def _start(trainer: Trainer) -> str:
    found = trainer.checkpoints.loaded
    if found is not None:
        return f"continues at nimg = {trainer.nimg}, from {found}"
    if trainer.config.init is not None:
        return f"fine-tunes {trainer.config.init}"
    return "from random weights"


def _samples(trainer: Trainer) -> str:
    every = sample_interval(trainer.config)
    if not every:
        return "no samples (sample_nimg)"
    if every >= trainer.config.total_nimg:
        return "samples at the end"
    return f"samples every {format_amount(every)}"


def _finished(trainer: Trainer) -> str:
    nimg, total = trainer.nimg, trainer.config.total_nimg
    longer = f"for a longer run give a larger total_nimg, as in --set total_nimg={2 * nimg}"
    if nimg == total:
        return (
            f"{trainer.run_dir} has ended, at nimg = {nimg}: there is nothing left to do; {longer}"
        )
    return (
        f"{trainer.run_dir} is at nimg = {nimg} already, beyond total_nimg = {total}: there is"
        f" nothing to do; {longer}"
    )


def _told(trainer: Trainer) -> str:
    """Options of ``edm2lite generate`` that say what images show."""
    conditions, captions = trainer.config.net.backbone.conditions, trainer.dataset.captions
    if any(condition.is_required for condition in conditions):
        return f" --conditions {shlex.quote(trainer.config.data.source)}"
    if trainer.config.text is not None and captions is not None:
        texts = (captions.text(i) for i in range(len(captions)))
        first = next((text for text in texts if text), "")
        return f" --prompt {shlex.quote(one_line(first))} --guidance 2 --seeds 0-15"
    classes = sum(getattr(condition, "num_classes", 0) for condition in conditions)
    if not classes:
        return " --seeds 0-63"
    return f" --class all --seeds 0-{8 * classes - 1 if classes <= 16 else 63}"
