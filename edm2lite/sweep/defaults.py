"""What a sweep measures if nothing else is asked for: images against those the run was trained on.

Inception and DINOv2 are made for photos, and have to be downloaded. Where no reference is given, a
small network learns to tell the training images from each other, and the Fréchet distance is that
of its features. Such values compare the lengths of one run; they are no FID.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edm2lite import processes
from edm2lite.config_file.source import read_yaml
from edm2lite.dataset import ImageDataset, open_dataset
from edm2lite.dataset.subset import rows_of_classes, subset, told_class
from edm2lite.diffusion.precond import PrecondConfig
from edm2lite.metrics.feature_stats import FeatureStats
from edm2lite.metrics.reference import statistics
from edm2lite.metrics.registry import find_metric
from edm2lite.metrics.retrieval import FEWEST, train_retrieval
from edm2lite.network.conditions import ClassLabel, Condition

LENGTHS = (0.03, 0.05, 0.07, 0.1, 0.13, 0.16, 0.2, 0.25)
"""EMA lengths that are measured if none are asked for."""

NETWORK, REFERENCE = "features.safetensors", "features-reference.safetensors"
"""Names of the network and of its statistics of the training images in the folder of a run."""

CONVERTED = "dataset.zip"
"""Name of the converted pictures in the folder of a run that was given pictures."""

NUM = {"cpu": 500, "cuda": 5000}
"""Largest number of images per length by the kind of device, if none is asked for."""

STEPS = {"cpu": 12, "cuda": 32}
"""Number of sampler steps by the kind of device, if none is asked for."""

SAMPLES = {"cpu": 20_000, "cuda": 40_000}
"""Number of augmented images that the network learns from."""


class Defaults(NamedTuple):
    """The options of a sweep, and what has to be made before it.

    Attributes:
        options: Options of :class:`edm2lite.sweep.SweepOptions`, and ``steps``, the number of
            sampler steps.
        lines: A line about each choice.
        prepare: Function that makes the reference, unless it is there.
    """

    options: dict[str, Any]
    lines: list[str]
    prepare: Callable[[], None]


def with_defaults(given: Mapping[str, Any]) -> Defaults:
    """The options of a sweep, with what is left out chosen.

    Args:
        given: Options of :class:`edm2lite.sweep.SweepOptions`, and ``steps``, that were given.

    Raises:
        FileNotFoundError: If there is no reference, and the training images are not there either.
        ValueError: If the run was trained on something from which no reference can be made.

    Example:
        >>> found = with_defaults({"run": Path("runs/a"), "ref": "a.safetensors"})
        >>> found.options["steps"], len(found.options["sigma_rel"])
        (32, 8)
        >>> found.lines
        ['lengths   3, 5, 7, 10, 13, 16, 20, 25 %; others by --sigma-rel, the best one by --search']
    """
    found, lines = dict(given), []
    if not any(found.get(name) for name in ("sigma_rel", "decay", "search")):
        found["sigma_rel"] = LENGTHS
        shown = ", ".join(f"{100 * length:.2g}" for length in LENGTHS)
        lines.append(f"lengths   {shown} %; others by --sigma-rel, the best one by --search")
    needs = find_metric(found.get("metric", "fid")).needs
    if "ref" in found or not needs.startswith("reference"):
        return Defaults({"steps": STEPS["cuda"], **found}, lines, lambda: None)
    if found.get("weights"):
        raise ValueError(
            f"--weights goes with --ref, whose features it computes, got {found['weights']} alone"
        )
    device = "cpu" if processes.device().type == "cpu" else "cuda"
    folder = Path(found["run"])  # of no other: results may go elsewhere, these belong to the run
    dataset = training_images(folder)
    if len(dataset) < FEWEST:
        raise ValueError(
            f"--ref must be given: a network that compares images needs {FEWEST} to learn from,"
            f" {dataset.name} has {len(dataset)}"
        )
    found |= {"ref": folder / REFERENCE, "weights": folder / NETWORK}
    steps = found.setdefault("steps", STEPS[device])
    num = found.setdefault("num", min(len(dataset), NUM[device]))
    if _is_told(folder, dataset) and "conditions" not in found:
        found["conditions"] = _spread(dataset, num)
    lines += [
        f"metric    distance of generated images from the {len(dataset)} of {dataset.name}; others"
        " by --ref and --metric",
        f"features  those of a small network that learned these images, {folder / NETWORK}: values"
        " compare lengths of this run",
        f"images    {num} of each length, {steps} steps; more by --num and --steps",
    ]
    with_features = needs == "reference features"
    make = partial(_make, dataset, folder, SAMPLES[device], with_features)
    return Defaults(found, lines, lambda: _first(folder, make))


def _first(folder: Path, make: Callable[[], None]) -> None:
    processes.after_first(f"reference of {folder}", make)


def training_images(run: Path) -> ImageDataset:
    """The images that a run was trained on.

    Args:
        run: Folder of the run.

    Raises:
        FileNotFoundError: If the run has no configuration, or its images are not there.
        ValueError: If they are latents.
    """
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(
            f"--ref must be given: {run} has no config.yaml that says on what it was trained;"
            " `edm2lite evaluate stats IMAGES` makes one"
        )
    data = read_yaml(str(run)).get("data") or {}
    source, converted = data.get("source", ""), run / CONVERTED
    if Path(source).name == CONVERTED and not Path(source).exists() and converted.is_file():
        source = str(converted)  # the run was moved
    dataset = open_dataset(source)
    if dataset.encoder is not None:
        raise ValueError(
            f"--ref must be given: {run} was trained on latents ({dataset.name}); `edm2lite"
            " evaluate stats IMAGES` makes one of the images themselves"
        )
    if data.get("classes") or data.get("per_class"):
        rows = rows_of_classes(dataset, data.get("classes"), data.get("per_class"))
        dataset = subset(dataset, rows)
    if data.get("as_class") is not None:
        labels = [c for c in _taken(run) if isinstance(c, ClassLabel)]
        dataset = told_class(dataset, data["as_class"], labels[0].num_classes if labels else 0)
    return dataset


def _taken(run: Path) -> tuple[Condition, ...]:
    """What the network of a run takes."""
    net = read_yaml(str(run)).get("net") or {}
    return PrecondConfig.from_json(json.dumps(net), str(run)).backbone.conditions


def _is_told(run: Path, dataset: ImageDataset) -> bool:
    """Whether the network of a run is told something that the images have."""
    taken = {condition.name for condition in _taken(run)}
    has_text = dataset.captions is not None and bool(taken & {"pooled", "tokens"})
    return has_text or bool(taken & {condition.name for condition in dataset.conditions})


def _make(dataset: ImageDataset, folder: Path, num_samples: int, with_features: bool) -> None:
    """Train the network and write its statistics of the images, unless they are there."""
    network, reference = folder / NETWORK, folder / REFERENCE
    if not network.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        reference.unlink(missing_ok=True)
        train_retrieval(dataset, network, num_samples)
    if not reference.is_file() or (with_features and not _has_features(reference)):
        found = statistics(dataset, "retrieval", weights=network, keep_features=with_features)
        found.save(reference)


def _has_features(path: Path) -> bool:
    return FeatureStats.load(path).features is not None


def _spread(dataset: ImageDataset, num: int) -> ImageDataset:
    """``num`` of the images, evenly spread, so that all classes have their share."""
    size = len(dataset)
    return subset(dataset, np.arange(min(num, size)) * size // min(num, size))
