"""A run on pictures of one's own, of which everything else is chosen and said.

``edm2lite train --data PHOTOS --out RUN`` comes here. What is chosen is written to
``RUN/config.yaml`` with the rest, so the same command continues the run with the same choices,
however fast the machine is then.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from edm2lite import config_file, processes
from edm2lite.atomic import replacing
from edm2lite.diffusion.format1 import upgraded_run
from edm2lite.ema import planning

from . import own_choice as choice
from .config import RunConfig, load_config
from .own_continued import check_same, follow_moved
from .own_images import OwnImages, own_images
from .step_time import fastest
from .tuning import with_model

FINE_TUNING_RATE = 0.3
"""Learning rate with ``init`` over that of the configuration."""


@dataclass
class _Explained:
    """Values as ``--set`` takes them, and a line about each choice."""

    values: dict[str, Any] = field(default_factory=dict)
    lines: list[tuple[str, str]] = field(default_factory=list)

    def add(self, what: str, text: str, values: dict[str, Any] | None = None) -> None:
        """Remember a choice: what it is of, what it is and why, and the values."""
        self.values |= values or {}
        self.lines.append((what, text))

    def settings(self) -> list[str]:
        """The values in the form of ``--set``."""
        return [f"{key}={_text(value)}" for key, value in self.values.items()]


def own_run(
    data: str,
    out: Path,
    *,
    preset: str | None = None,
    resolution: int | None = None,
    init: str | None = None,
    overrides: Iterable[str] = (),
    device: torch.device | None = None,
    say: Callable[[str], None] = print,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RunConfig:
    """The configuration of a run on pictures, in ``out/config.yaml``; each choice is said.

    Of the processes that torchrun started, the first one chooses, and the others read the file.

    Args:
        data: Pictures: a folder, in which folders are classes, a ZIP, or a data set.
        out: Folder of the run. If it has a configuration already, the run goes on with that.
        preset: Configuration to begin with. [default: chosen by the device and the pictures]
        resolution: Side in pixels to which pictures are converted. [default: chosen]
        init: Model to fine-tune.
        overrides: Changes ``a.b=c``, which go before all choices.
        device: Device that the run is for. [default: that of this process]
        say: Function that is given a line about each choice.
        progress: Function that is called with the number of pictures converted, and of all.

    Raises:
        FileNotFoundError: If there are no pictures, or no such configuration.
        ValueError: If the pictures cannot be used, or the run is one of other pictures.

    Example:
        >>> import tempfile
        >>> out = Path(tempfile.mkdtemp()) / "run"
        >>> tiny = ["net.backbone.model_channels=32", "total_nimg=12800"]
        >>> config = own_run("digits", out, overrides=tiny, say=lambda line: None)
        >>> config.net.backbone.label_dim, config.snapshot_nimg, (out / "config.yaml").is_file()
        (10, 320, True)
    """
    if Path(data).is_dir() and Path(data).resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(
            f"--out must lie outside of the pictures, to which its grids would be added, got {out}"
            f" within {data}"
        )
    changes, is_new = list(overrides), not (out / "config.yaml").is_file()

    def begin() -> None:
        if is_new:
            place = device or processes.device()
            config = _chosen(data, out, preset, resolution, init, changes, place, say, progress)
            out.mkdir(parents=True, exist_ok=True)
            with replacing(out / "config.yaml") as file:
                file.write(config.to_yaml())
        else:
            follow_moved(out)

    processes.after_first(f"choose the configuration of {out}", begin)
    config = load_config(str(out), changes)
    if not is_new:
        asked = None if preset is None else _load(preset, ["data.source=pictures", *changes])
        check_same(config, out, data, resolution, init, asked)
        if processes.rank() == 0:
            say(f"{out} goes on with its own configuration, {out / 'config.yaml'}")
    return config


def _chosen(
    data: str,
    out: Path,
    preset: str | None,
    resolution: int | None,
    init: str | None,
    overrides: list[str],
    device: torch.device,
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> RunConfig:
    """A new configuration."""
    explained = _Explained()
    largest = choice.largest_side(device.type)
    # with init, network and encoder are those of the model, not those of the preset
    of_model = [] if init is None else [f"init={_text(init)}", "net={}", "encoder={}"]
    fixed = [*of_model, *overrides]
    if preset is not None or init is not None:
        named = preset or choice.preset_for(largest, device.type)
        side = choice.pixels_of(_load(named, ["data.source=pictures", *fixed]))
        if init is not None and resolution not in (None, side):
            raise ValueError(f"--resolution must be that of {init}, {side}, got {resolution}")
        largest = resolution = resolution or side
    images = own_images(data, out, largest, resolution, progress)
    explained.add("pictures", f"{choice.contents(images.dataset)}, {images.done}")
    explained.values["data.source"] = images.source
    name = preset or choice.preset_for(images.dataset.image_shape[1], device.type)
    _add_network(explained, name, images, init, fixed, preset is not None, device)
    _add_length(explained, name, images, fixed, overrides, device)
    config = _load(name, [*explained.settings(), *fixed], overrides)
    _add_ema(explained, config)
    for what, text in explained.lines:
        say(f"{what:10}{text}")
    say(f"{'change':10}--set KEY=VALUE in the same command; {out}/config.yaml has all keys")
    return config


def _add_network(
    explained: _Explained,
    name: str,
    images: OwnImages,
    init: str | None,
    fixed: list[str],
    is_given: bool,
    device: torch.device,
) -> None:
    config = _load(name, [*explained.settings(), *fixed])
    if init is not None:
        rate = float(f"{config.optim.ref_lr * FINE_TUNING_RATE:.3g}")
        _check_classes(config, images)
        explained.values["optim.ref_lr"] = rate
        found = _load(name, [*explained.settings(), *fixed]).optim.ref_lr
        usual = f"{FINE_TUNING_RATE} of the usual learning rate"
        how = usual if found == rate else f"a learning rate of {found:g}, as you asked"
        explained.add("network", f"that of {init}, fine-tuned at {how}")
        return
    values = choice.network_values(config, images.dataset)
    is_gpu = device.type == "cuda"
    values["net.dtype"] = config.net.dtype if is_gpu else "float32"
    values["compile"] = config.compile and is_gpu
    explained.values |= values
    final = _load(name, [*explained.settings(), *fixed])
    size = final.net.num_parameters()
    reason = (
        "as you asked" if is_given else f"the one for a {'CPU' if device.type == 'cpu' else 'GPU'}"
    )
    explained.add("network", f"{name}, {reason}: {size:,} parameters")
    used: Any = final.encoder
    measured = (values["encoder.shift"], values["encoder.scale"])
    why = f"the measured mean, and deviation / {config.net.sigma_data}"
    if (used.shift, used.scale) != measured:
        why = f"as you asked; measured were {measured[0]} and {measured[1]}"
    explained.add("values", f"(pixel - {used.shift}) / {used.scale}: {why}")


def _check_classes(config: RunConfig, images: OwnImages) -> None:
    """Raise ValueError unless the model that is fine-tuned has the classes of the pictures."""
    classes, known = images.dataset.label_dim, getattr(config.net.backbone, "label_dim", 0)
    if known and classes != known and config.data.as_class is None:
        raise ValueError(
            f"the pictures must have the {known} classes of {config.init}, they have {classes}; to"
            " teach it one class, add --set data.as_class=NUMBER"
        )


def _add_length(
    explained: _Explained,
    name: str,
    images: OwnImages,
    fixed: list[str],
    overrides: list[str],
    device: torch.device,
) -> None:
    """Choose the length of the run, unless a person or a configuration of theirs has."""
    config = _load(name, [*explained.settings(), *fixed], overrides)
    stated = _stated(overrides)
    found = fastest(config, device, [*stated, *(["net.dtype"] if config.init else [])])
    for key, text in found.reasons.items():
        explained.add(key.rpartition(".")[2], text, {key: found.values[key]})
    speed, total = found.speed * processes.world_size(), config.total_nimg
    if "total_nimg" in stated:
        why = "as you asked"
    elif name not in choice.CHOSEN:
        why = f"as {name} says"
    else:
        kind = device.type if name == choice.ON_A_CPU else "cuda"
        total = choice.length(len(images.dataset), config.batch_size, speed, kind)
        why = "by their number" if kind != "cpu" else f"for about {choice.MINUTES} minutes"
        if kind == "cpu" and total > 60 * choice.MINUTES * speed:
            why = "the fewest that show something"
        explained.values["total_nimg"] = total
    minutes = total / speed / choice.STEPPING / 60
    uncompiled = ", uncompiled" if config.compile else ""  # as steps are timed, see step_time
    time = f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.0f} hours"
    explained.add(
        "length",
        f"{total:,} images, {why}: each {total / len(images.dataset):.0f} times, in about {time} at"
        f" the {speed:.0f} images a second that were measured here{uncompiled}",
    )


def _add_ema(explained: _Explained, config: RunConfig) -> None:
    plan = planning.assess(
        config.ema.sigma_rels,
        min(config.snapshot_nimg, config.total_nimg),
        config.ema.dtype,
        duration=config.total_nimg,
        num_params=config.net.num_parameters(),
        target_sigma_rels=planning.lengths_between(0.02, 0.25),
    )
    explained.add(
        "averages",
        f"{plan.num_files} snapshots, one of each length every {config.snapshot_nimg:,} images: any"
        f" length of 2 to 25 % can be rebuilt (error at most {100 * plan.worst_error:.1g} %)",
    )
    explained.add("grids", f"every {config.sample_nimg:,} images, to see how it goes")


def _load(name: str, settings: Iterable[str], overrides: Iterable[str] = ()) -> RunConfig:
    """A configuration with changes, and cadences after its length if it is one that is chosen."""
    complete: Callable[[dict[str, Any]], dict[str, Any]] = with_model
    if name in choice.CHOSEN:
        complete = partial(_completed, stated=_stated(overrides))
    return config_file.load(RunConfig, name, settings, upgrade=upgraded_run, complete=complete)


def _completed(values: dict[str, Any], stated: list[str]) -> dict[str, Any]:
    return choice.with_cadences(with_model(values), stated)


def _stated(overrides: Iterable[str]) -> list[str]:
    return [text.partition("=")[0] for text in overrides]


def _text(value: Any) -> str:
    """A value as YAML: a text in quotes, for a path may have any character."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else str(value)
