"""Options of ``edm2lite generate`` for images to begin with and to follow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edm2lite.dataset import ImageDataset
    from edm2lite.sampling.edit import Edit

_PLACE = click.Path(path_type=Path)  # whether it exists is said when it is opened
_OPTIONS: dict[str, dict[str, Any]] = {
    "control": {
        "type": _PLACE,
        "multiple": True,
        "metavar": "FILE|FOLDER",
        "help": "Image that the network is told, such as an outline to follow; of a folder with M"
        " images, seed s gets image s mod M. Repeatable, for networks that take several.",
    },
    "init-image": {
        "type": _PLACE,
        "metavar": "FILE|FOLDER",
        "help": "Image to begin with, in place of noise alone, of the size that the model makes; of"
        " a folder with M images, seed s gets image s mod M.",
    },
    "strength": {
        "type": click.FloatRange(0, 1),
        "metavar": "S",
        "help": "With --init-image: share of the steps that are taken; 0 leaves the image as it is."
        " [default: 1]",
    },
    "from-sigma": {
        "type": float,
        "metavar": "SIGMA",
        "help": "With --init-image: noise level to begin at, in place of --strength.",
    },
    "mask": {
        "type": _PLACE,
        "metavar": "FILE|FOLDER",
        "help": "With --init-image: fill in where the mask is white, and keep all other pixels.",
    },
    "resample": {
        "type": click.IntRange(1),
        "metavar": "N",
        "help": "With --init-image: take each step N times, so that what is filled in agrees with"
        " the rest. [default: 1]",
    },
}


def editing_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options; :func:`take_edit` takes their values."""
    for name, option in reversed(_OPTIONS.items()):
        command = click.option(f"--{name}", **option)(command)
    return command


def take_edit(values: dict[str, Any]) -> Edit | None:
    """What the options describe; their values are removed from ``values``."""
    names = [name.replace("-", "_") for name in _OPTIONS if name != "control"]
    given = {n: value for n in names if (value := values.pop(n)) is not None}
    if not given:
        return None
    if "init_image" not in given:
        raise click.UsageError(f"--{next(iter(given)).replace('_', '-')} needs --init-image")
    from edm2lite.sampling.edit import Edit, open_pictures

    return Edit(
        images=open_pictures(given["init_image"]),
        strength=given.get("strength"),
        sigma=given.get("from_sigma"),
        mask=open_pictures(given["mask"]) if "mask" in given else None,
        resample=given.get("resample", 1),
    )


def take_controls(values: dict[str, Any]) -> list[ImageDataset]:
    """The images to follow; their option is removed from ``values``."""
    places = values.pop("control")
    if not places:
        return []
    from edm2lite.sampling.edit import open_pictures

    return [open_pictures(place) for place in places]
