"""Publishing a model with what its run knows: samples, measured metrics, how it was trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edm2lite.claim import claim_folder
from edm2lite.config_file.source import read_yaml
from edm2lite.image_grid import labeled_mosaic, mosaic, png
from edm2lite.models.config_json import without_folders
from edm2lite.models.hub import CARD, CONFIG, checked_license, save_pretrained
from edm2lite.models.loading import EXPORTED, Model, load, read_metadata
from edm2lite.models.model_card import PICTURE, Background, Samples
from edm2lite.network.flops import count_macs
from edm2lite.processes import device
from edm2lite.sampling.generation import generate
from edm2lite.sampling.settings import Sampling
from edm2lite.sweep.page import read_page

NUM_SAMPLES = 16
"""Number of images in the picture of a card."""

_CPU_MACS = 1e13  # about five minutes of a laptop's CPU


def export_model(
    name: str | Path,
    folder: str | Path,
    *,
    license: str | None = None,
    title: str | None = None,
    samples: int | None = None,
    prompts: Sequence[str] = (),
    note: Callable[[str], object] = lambda text: None,
) -> Path:
    """Write a model, its card, ``config.json`` and a picture of samples to a folder.

    The card says what the run of the model knows: its configuration, and what sweeps in its folder
    have measured of these weights.

    Args:
        name: Name of the model, as :func:`edm2lite.load` takes it.
        folder: Folder that has none of the files so far, or those of this very export.
        license: License of the weights, see :func:`edm2lite.save_pretrained`.
        title: Name of the model in the card. [default: that of the folder]
        samples: Number of images in the picture, 0 for none. [default: 16, or none where a model
            cannot be sampled here, or not within minutes]
        prompts: Prompts of the images, for a model that is told text.
        note: Function that is told why there is no picture.

    Returns:
        The folder.

    Raises:
        FileNotFoundError, ValueError, ImportError: As :func:`edm2lite.save_pretrained`, and where
            images are asked for and cannot be made.

    Example:
        >>> export_model("runs/digits@sigma_rel=0.13", "digits",
        ...              license="apache-2.0")  # doctest: +SKIP
    """
    with claim_folder(Path(folder)):
        metadata = read_metadata(name)
        license = checked_license(license, metadata, str(name))
        _check_place(Path(folder))
        made = None
        if samples != 0:
            made = _samples(load(name), samples, prompts, note, Path(folder) / PICTURE)
        background = background_of(str(name), metadata, made)
        return save_pretrained(name, folder, license=license, name=title, background=background)


def _check_place(folder: Path) -> None:
    """Files beside a model may be of this very export; without a model they are of something else.

    Raises:
        ValueError: If there are some without a model.
    """
    for name in (CARD, CONFIG, PICTURE):
        if (folder / name).exists() and not (folder / EXPORTED).exists():
            raise ValueError(
                f"the result must go to a new folder, {folder / name} exists; give another"
            )


def background_of(
    name: str, metadata: Mapping[str, str], samples: Samples | None = None
) -> Background:
    """What the run of a model knows about it; nothing for a model that is a file.

    Args:
        name: Name of the model, as :func:`edm2lite.load` takes it.
        metadata: Metadata of the model.
        samples: Images of it.

    Example:
        >>> background_of("model.safetensors", {}).metrics
        ()
    """
    run, at, _ = name.rpartition("@")
    place = Path(run if at and not Path(name).exists() else name)
    if not (place / "config.yaml").is_file():
        return Background(samples=samples)
    training = without_folders(read_yaml(str(place)))
    return Background(samples=samples, metrics=_metrics(metadata, place), training=training)


def _metrics(metadata: Mapping[str, str], run: Path) -> tuple[str, ...]:
    """What the sweeps in the folder of a run, or in a folder within it, say of a model."""
    found = []
    for path in sorted([*run.glob("sweep*.html"), *run.glob("*/sweep*.html")]):
        page = read_page(path)
        if not page.get("id") or page["id"] != metadata.get("run"):
            continue
        for point in page["points"]:
            if _is_of(point["cell"], metadata):
                found.append(_sentence(page, point))
    return tuple(dict.fromkeys(found))


def _is_of(cell: Mapping[str, Any], told: Mapping[str, str]) -> bool:
    """Whether a cell of a sweep was measured with the weights of a model."""
    length = told.get("sigma_rel")
    lengths = None if length is None or "decay" in told else float(length)
    same = cell.get("sigma_rel") == lengths and cell.get("decay", "") == told.get("decay", "")
    return same and not cell.get("group") and str(cell.get("nimg")) == told.get("nimg")


def _sentence(page: dict[str, Any], point: dict[str, Any]) -> str:
    """One measurement in words, with its interval."""
    text = f"{page['metric']} {point['value']:.4g}"
    if point["low"] is not None:
        text += f" (95 % interval {point['low']:.4g} to {point['high']:.4g})"
    guidance = point["cell"].get("guidance", 1)
    guided = f", guidance {guidance:g}" if guidance != 1 else ""
    return f"{text}: {page['protocol']}{guided}"


def _samples(
    model: Model,
    num: int | None,
    prompts: Sequence[str],
    note: Callable[[str], object],
    there: Path,
) -> Samples | None:
    """A picture of generated images; None if none is wanted, or possible."""
    if num == 0:
        return None
    sampling = Sampling(guidance=2.0) if prompts else Sampling()
    if num is None:
        why = _why_not(model, sampling, prompts)
        if why:
            note(f"the card has no picture of samples: {why}")
            return None
    count = num or NUM_SAMPLES
    classes = model.num_classes
    columns = math.ceil(math.sqrt(count))
    if num is None and 2 <= classes <= NUM_SAMPLES:
        count, columns = classes * -(-NUM_SAMPLES // classes), classes
    told = f", prompts {', '.join(prompts)}" if prompts else ", classes in turn" if classes else ""
    guided = f", guidance {sampling.guidance:g}" if prompts else ""
    words = f"Seeds 0 to {count - 1}{told}, {sampling.num_steps} steps{guided}."
    if there.is_file():  # of an export that was interrupted, or is made again
        return Samples(there.read_bytes(), words)
    images = generate(
        model, range(count), classes="all" if classes else None, sampling=sampling,
        prompts=list(prompts) or None, guide="unconditional" if prompts else None,
    )  # fmt: skip
    names = [model.class_title(i % classes) for i in range(count)] if classes else []
    names = [prompts[i % len(prompts)] for i in range(count)] if prompts else names
    pictures = list(images.numpy())
    drawn = labeled_mosaic(pictures, columns, names) if names else mosaic(pictures, columns)
    return Samples(png(drawn), words)


def _why_not(model: Model, sampling: Sampling, prompts: Sequence[str]) -> str:
    """Why a model is not sampled unless it is asked for, "" if it is."""
    network = model.net.config.backbone
    if model.text_encoder is not None and not prompts:
        return "the model is told text; give --prompt"
    if any(c.is_required for c in network.conditions):
        return "the model needs condition images"
    if model.encoder.kind != "pixels":
        return f"its images are decoded by {model.encoder.kind}; --samples 16 makes them"
    work = count_macs(network).total * (2 * sampling.num_steps - 1) * NUM_SAMPLES
    if device().type == "cpu" and work > _CPU_MACS:
        return "a CPU takes long for this network; --samples 16 makes them"
    return ""
