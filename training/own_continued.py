"""A run on pictures of one's own that goes on: whether it is the one that is asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from edm2lite.atomic import replacing
from edm2lite.sweep.defaults import CONVERTED

from . import own_choice as choice
from .config import RunConfig, load_config
from .own_images import check_origin

_CHOSEN = {"img_resolution", "img_channels", "label_dim", "attn_resolutions"}  # by the pictures


def follow_moved(out: Path) -> None:
    """Let the configuration of a run that was moved, with its pictures, name where they are now.

    Args:
        out: Folder of the run.
    """
    config = load_config(str(out))
    source, there = Path(config.data.source), out / CONVERTED
    if source.name == CONVERTED and not source.exists() and there.is_file():
        moved = dataclasses.replace(config.data, source=str(there))
        with replacing(out / "config.yaml") as file:
            file.write(dataclasses.replace(config, data=moved).to_yaml())


def check_same(
    config: RunConfig,
    out: Path,
    data: str,
    resolution: int | None,
    init: str | None,
    asked: RunConfig | None,
) -> None:
    """Raise ValueError unless a run is one of these pictures, and what else is asked for.

    Args:
        config: Configuration of the run.
        out: Folder of the run.
        data: Pictures.
        resolution: Side in pixels, or None.
        init: Model to fine-tune, or None.
        asked: Configuration to begin with, or None.
    """
    source = Path(config.data.source).resolve()
    if source == (out / CONVERTED).resolve():
        check_origin(out, data, resolution)
    elif config.data.source != data and source != Path(data).resolve():
        raise ValueError(
            f"{out} is a run on {config.data.source}, --data names {data}; give another --out"
        )
    if init not in (None, config.init):
        raise ValueError(
            f"{out} is a run with init={config.init}, --init names {init}; give another --out"
        )
    if resolution not in (None, side := choice.pixels_of(config)):
        raise ValueError(
            f"{out} is a run at {side} x {side} pixels, --resolution is {resolution}; give another"
            " --out"
        )
    if asked is not None and config.init is None:
        there, wanted = config.net.backbone, asked.net.backbone
        names = {field.name for field in dataclasses.fields(wanted)} - _CHOSEN
        other = [n for n in sorted(names) if getattr(wanted, n) != getattr(there, n, None)]
        if other:
            raise ValueError(
                f"{out} is a run of another network than the configuration that is named, they"
                f" differ in {other[0]}; give another --out"
            )
