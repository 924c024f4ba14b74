"""The images of a prior: those of a data set, or made once by the model before it is trained."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch

from edm2lite.dataset import ImageDataset, open_dataset
from edm2lite.dataset.captions import Captions
from edm2lite.dataset.joined import joined
from edm2lite.dataset.labels import Labels
from edm2lite.dataset.subset import rows_of_classes, subset
from edm2lite.models.loading import Model
from edm2lite.sampling.generation import image_generator
from edm2lite.sampling.image_folder import ImageFolder
from edm2lite.sampling.images import ImageGenerator
from edm2lite.sampling.settings import Sampling

from . import distributed
from .config import RunConfig
from .prior import Prior
from .text import with_captions

FILE = "prior.zip"
"""Name of the generated images in the folder of a run."""

_PATIENCE = timedelta(days=7)  # of the ranks that wait for rank 0 to generate them


def prior_dataset(
    config: RunConfig, instances: ImageDataset, base: Model | None, run_dir: Path
) -> ImageDataset | None:
    """The images of the prior, which need not be generated yet to be counted; None without one.

    Args:
        config: Configuration of the run.
        instances: New images that the model is taught.
        base: The model that is fine-tuned.
        run_dir: Folder of the run, which need not exist.

    Raises:
        FileNotFoundError: If there is no such data set.
        ValueError: If the model cannot generate the images, or classes are not among its own.
    """
    prior = config.prior
    if prior is None or base is None:
        return None
    found = _source(prior) if prior.source else _generated(config, instances, base, run_dir)
    found = with_captions(config, found)
    joined(instances, found, config.net.backbone.condition_names)  # checks that they go together
    return found


def _source(prior: Prior) -> ImageDataset:
    dataset = open_dataset(str(prior.source))
    if prior.classes is None:
        return dataset
    return subset(dataset, rows_of_classes(dataset, prior.classes, None))


def _generated(
    config: RunConfig, instances: ImageDataset, base: Model, run_dir: Path
) -> ImageDataset:
    prior = config.prior
    assert prior is not None
    if instances.encoder is not None:
        raise ValueError(
            "prior.generate makes pixels, and the model is trained on latents; generate images,"
            " encode them by edm2lite dataset encode, and give prior.source"
        )
    generator_of(config, instances, base, torch.device("cpu"))  # checks classes and prompts
    return _expected(prior, instances, base, run_dir / FILE)


def _expected(prior: Prior, instances: ImageDataset, base: Model, path: Path) -> ImageDataset:
    """The generated images: all is known of them but the pixels, which are read from a file."""
    opened = functools.cache(lambda: open_dataset(path))
    table = None
    if base.num_classes:
        values = [prior.label(seed, base.num_classes) for seed in prior.seeds]
        table = Labels(np.array(values, np.int64), instances.label_dim or base.num_classes)
    texts = [(prior.prompts[s % len(prior.prompts)],) for s in prior.seeds if prior.prompts]
    return ImageDataset(
        str(path),
        len(prior.seeds),
        instances.image_shape,
        lambda i: opened().read(i),
        table,
        captions=Captions(texts) if texts else None,
    )


def generator_of(
    config: RunConfig, instances: ImageDataset, base: Model, device: torch.device
) -> ImageGenerator:
    """The generator of the images of a prior.

    Args:
        config: Configuration of the run.
        instances: New images, of which the generated ones have the size.
        base: The model that is fine-tuned.
        device: Device that computes.

    Raises:
        ValueError: If the model cannot generate them.
    """
    prior = config.prior
    assert prior is not None
    size = config.encoder.shape(instances.image_shape)[1:]
    side = config.net.backbone.img_resolution
    sampling = Sampling(num_steps=prior.steps, size=None if size == (side, side) else size)
    classes: Sequence[int] | None = None
    if base.num_classes:
        classes = [prior.label(seed, base.num_classes) for seed in prior.seeds]
        if not 0 <= min(classes) <= max(classes) < base.num_classes:
            raise ValueError(
                f"prior.classes must be classes of {base.name}, 0 to {base.num_classes - 1}, got"
                f" {list(prior.classes or ())}"
            )
    elif prior.classes is not None:
        raise ValueError(f"prior.classes must be left out, {base.name} has none")
    if base.text_encoder is not None and not prior.prompts:
        raise ValueError(f"prior.prompts must be given, {base.name} is told text")
    return image_generator(
        base, prior.seeds, prompts=prior.prompts or None, classes=classes, sampling=sampling,
        device=device,
    )  # fmt: skip


def make_prior(
    config: RunConfig,
    instances: ImageDataset,
    base: Model | None,
    run_dir: Path,
    device: torch.device,
) -> None:
    """Generate the images of a prior into the folder of the run, unless they are there.

    Rank 0 does this, which holds the claim on the folder; the others wait. What an interrupted run
    has left is completed; the file appears when all images are there, and is used as it is then.

    Args:
        config: Configuration of the run.
        instances: New images.
        base: The model that is fine-tuned.
        run_dir: Folder of the run.
        device: Device that computes.

    Raises:
        ValueError: If the file has another number of images, or what is left of an interrupted run
            was made with other settings.
    """
    if base is None or config.prior is None or config.prior.generate is None:
        return
    path = run_dir / FILE
    group = distributed.host_group(_PATIENCE)
    distributed.on_rank_zero(lambda: _make(config, instances, base, path, device), group)


def _make(
    config: RunConfig, instances: ImageDataset, base: Model, path: Path, device: torch.device
) -> None:
    prior = config.prior
    assert prior is not None
    if path.is_file():
        found = len(open_dataset(path))
        if found != prior.generate:
            raise ValueError(
                f"{path} must hold {prior.generate} images, it has {found}; restore it, or remove"
                " it to generate them anew"
            )
        return
    generator, folder = generator_of(config, instances, base, device), ImageFolder(path)
    missing = folder.open(
        generator.settings, generator.seeds, generator.seed_conditioning, prompts=generator.prompts
    )
    for batch in generator.part(missing):
        folder.write(batch)
    folder.finish()
