"""What is chosen for pictures of one's own: network, length and cadences, each with its reason.

Everything is a list of values as ``--set`` takes them, so that what a person sets goes before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edm2lite.dataset import ImageDataset
from edm2lite.dataset.summary import class_counts, summarize
from edm2lite.units import parse_count

from .config import RunConfig

ON_A_CPU = "tiny-32"
ON_A_GPU = {32: "small-32", 64: "small-64"}
CHOSEN = (ON_A_CPU, *ON_A_GPU.values())
"""Shipped configurations whose length follows from the pictures."""

MINUTES = 8
"""Length of a run on a CPU, if it is to be chosen."""

FEWEST_STEPS = 800
"""Number of steps that a run on a CPU has at least, however slow it is: fewer show nothing."""

STEPPING = 0.88
"""Share of that time that goes to steps; the rest is for grids, snapshots and checkpoints."""

EPOCHS = 2000
"""Times that each picture is seen in a run on a GPU."""

SHORTEST, LONGEST = 2**20, 2**25
"""Bounds of the length of a run on a GPU in images."""

PARTS = {"status_nimg": 80, "snapshot_nimg": 40, "checkpoint_nimg": 20, "sample_nimg": 8}
"""Into how many parts a run is divided by its cadences, at least."""

Values = dict[str, Any]


def preset_for(side: int, device_type: str) -> str:
    """Name of the shipped configuration for pictures of a side on a kind of device.

    Example:
        >>> preset_for(32, "cpu"), preset_for(64, "cuda")
        ('tiny-32', 'small-64')
    """
    if device_type == "cpu":
        return ON_A_CPU
    return ON_A_GPU[64 if side > 32 else 32]


def largest_side(device_type: str) -> int:
    """The largest side in pixels that is chosen for a kind of device."""
    return 32 if device_type == "cpu" else 64


def pixels_of(config: RunConfig) -> int:
    """Side in pixels of the pictures that a configuration is made for.

    Raises:
        ValueError: If it is made for latents.
    """
    if config.encoder.kind not in ("pixels", "patches"):
        raise ValueError(
            f"--data goes with configurations for pixels, this one has encoder.kind ="
            f" {config.encoder.kind}; set data.source instead"
        )
    return config.net.backbone.img_resolution * int(getattr(config.encoder, "patch_size", 1))


def network_values(config: RunConfig, dataset: ImageDataset) -> Values:
    """What follows from the pictures for a network that begins with random weights.

    The number of places where the network computes stays about that of the configuration: larger
    pictures have larger patches.

    Args:
        config: The configuration, made for pictures of another size, maybe.
        dataset: The pictures.
    """
    channels, side, _ = dataset.image_shape
    values: Values = dict(value_range(dataset))
    backbone = config.net.backbone
    if config.encoder.kind == "patches":
        patch = max(1, side // backbone.img_resolution)
        while patch and (side % patch or (side // patch) % backbone.size_multiple):
            patch -= 1
        if not patch:
            raise ValueError(
                f"--resolution must be a multiple of {backbone.size_multiple}, which the network"
                f" halves, got {side}"
            )
        places = side // patch
        values |= {
            "encoder.patch_size": patch,
            "net.backbone.img_resolution": places,
            "net.backbone.img_channels": channels * patch**2,
        }
        attending = getattr(backbone, "attn_resolutions", None)
        if attending is not None and places != backbone.img_resolution:
            values["net.backbone.attn_resolutions"] = [
                places * r // backbone.img_resolution for r in attending
            ]
    else:
        values |= {"net.backbone.img_resolution": side, "net.backbone.img_channels": channels}
    if hasattr(backbone, "label_dim"):
        values["net.backbone.label_dim"] = dataset.label_dim if dataset.label_dim > 1 else 0
        if dataset.label_dim < 2:
            values["data.label_dropout"] = 0.0  # there is nothing to leave out
    return values


def value_range(dataset: ImageDataset) -> Values:
    """Shift and scale by which the pictures have mean 0 and standard deviation sigma_data."""
    shift, scale = summarize(dataset).standardizing
    if not scale > 0:
        raise ValueError(f"--data must hold pictures that differ, those of {dataset.name} do not")
    return {"encoder.shift": round(shift, 2), "encoder.scale": round(scale, 2)}


def length(num_images: int, batch_size: int, speed: float, device_type: str) -> int:
    """Length of a run in images, a multiple of ``batch_size`` times the number of snapshots.

    On a CPU it is what the machine does in some minutes, on a GPU a number of epochs.

    Args:
        num_images: Number of pictures.
        batch_size: Images per step.
        speed: Images per second.
        device_type: ``cpu``, or anything else for a GPU.

    Example:
        >>> length(700, 32, speed=180.0, device_type="cpu")
        75520
        >>> length(700, 128, speed=4000.0, device_type="cuda")
        1397760
    """
    if device_type == "cpu":
        wanted = max(60 * MINUTES * STEPPING * speed, FEWEST_STEPS * batch_size)
    else:
        wanted = min(max(EPOCHS * num_images, SHORTEST), LONGEST)
    part = batch_size * PARTS["snapshot_nimg"]
    return max(1, int(wanted // part)) * part


def with_cadences(values: Mapping[str, Any], stated: Sequence[str]) -> Values:
    """The content of a configuration, with cadences and schedule that follow from its length.

    Args:
        values: Keys and values of the file, with the changes made.
        stated: Keys that a person has set, which stay.
    """
    found = dict(values)
    total, batch = parse_count(found["total_nimg"]), parse_count(found["batch_size"])
    if not isinstance(total, int) or not isinstance(batch, int) or batch < 1:
        return found  # what is wrong with them is said when they are checked
    for key, parts in PARTS.items():
        if key not in stated:
            found[key] = max(1, total // (parts * batch)) * batch
    optim = dict(found.get("optim") or {})
    if "optim.ref_batches" not in stated:
        optim["ref_batches"] = max(1, round(total / batch / 6))
    if "optim.rampup_nimg" not in stated:
        optim["rampup_nimg"] = max(1, math.ceil(total / batch / 25)) * batch
    return found | {"optim": optim}


def contents(dataset: ImageDataset) -> str:
    """Number of the pictures, and their classes, in words."""
    counts = class_counts(dataset)
    if counts is None or len(counts) < 2:
        return f"{len(dataset)} images without classes"
    names = dataset.table.classes if dataset.table is not None else ()
    if not names or len(counts) > 12:
        return f"{len(dataset)} images in {len(counts)} classes"
    listed = ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))
    return f"{len(dataset)} images in {len(counts)} classes ({listed})"
