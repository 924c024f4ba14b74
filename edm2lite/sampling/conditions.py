"""What a network is told about the image of each seed: values, a data set's rows, or chance.

Conditions that a data set has are taken from its images one after the other: seed s gets those of
image s mod N. Conditions that nothing gives are drawn from the seed where that is possible (the
class of an image), and must be given otherwise (a condition image).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edm2lite.dataset import ImageDataset
from edm2lite.models.class_names import chosen_classes
from edm2lite.models.loading import Model
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.conditions import ClassLabel, described
from edm2lite.network.told import values_of
from edm2lite.sampling.prompts import reads_captions

Classes = int | str | Sequence[int | str]
"""Number or name of the class of every image, a text that chooses several (``"all"``, ``"0-3"``,
``"Flags,Food"``: :mod:`edm2lite.models.class_names`), or a list; seed s gets number s of several,
modulo how many there are. A list of as many as there are seeds has one for each."""


def conditions_of_seeds(
    model: Model,
    seeds: Sequence[int],
    *,
    values: Conditioning | None = None,
    dataset: ImageDataset | None = None,
    classes: Classes | None = None,
) -> Conditioning:
    """All conditions that the network of a model takes, one row per seed.

    Args:
        model: The model that will generate.
        seeds: Seeds of the images.
        values: Values for some of the conditions, one row per seed.
        dataset: Data set with values for some of the conditions.
        classes: Classes of the images, in place of those of the data set.

    Raises:
        ValueError: If the model takes no classes, the data set has nothing that it takes, or a
            condition that the network needs is missing.

    Example:
        >>> from edm2lite.diffusion.precond import Precond, PrecondConfig
        >>> from edm2lite.models import Model, PixelEncoder
        >>> from edm2lite.network.unet import UNetConfig
        >>> unet = UNetConfig(img_resolution=8, img_channels=1, label_dim=3, model_channels=8,
        ...                   channel_mult=(1,), num_blocks=1, attn_resolutions=(), head_channels=8)
        >>> model = Model("tiny", Precond(PrecondConfig(backbone=unet)), PixelEncoder(), {})
        >>> conditions_of_seeds(model, [0, 1, 2, 3], classes="all")["label"]
        tensor([0, 1, 2, 0])
    """
    conditions = model.net.config.backbone.conditions
    found = dict((values or Conditioning()).values)
    if classes is not None:
        label = _class_label(model)
        found[label.name] = _labels(classes, seeds, model)
    if dataset is not None:
        found = {**_from_dataset(model, dataset, seeds, without=found), **found}
    rest = [condition for condition in conditions if condition.name not in found]
    return Conditioning({**found, **values_of(rest, "drawn", seeds).values})


def class_indices(conditioning: Conditioning) -> list[int] | None:
    """Class of each image, None where there are no classes or where they are vectors.

    Example:
        >>> class_indices(Conditioning({"label": torch.tensor([3, 7])}))
        [3, 7]
    """
    label = conditioning.get("label")
    return None if label is None or label.is_floating_point() else label.tolist()


def _class_label(model: Model) -> ClassLabel:
    conditions = model.net.config.backbone.conditions
    labels = [c for c in conditions if isinstance(c, ClassLabel)]
    if not labels:
        raise ValueError(
            f"classes must be left out for {model.name}, which takes {described(conditions)}"
        )
    return labels[0]


def _labels(classes: Classes, seeds: Sequence[int], model: Model) -> Tensor:
    if isinstance(classes, int):
        numbers: Sequence[int] = [classes]
    elif isinstance(classes, str):
        numbers = _numbers(classes, model)
    else:
        named = {name: _numbers(name, model) for name in {*classes} if isinstance(name, str)}
        numbers = [n for c in classes for n in (named[c] if isinstance(c, str) else (int(c),))]
        if not 1 <= len(numbers) <= len(seeds):
            raise ValueError(
                f"classes must be one per seed, or fewer that are gone through in turn, got"
                f" {len(numbers)} for {len(seeds)} seeds"
            )
        if len(numbers) == len(seeds):
            return torch.tensor(numbers)
    return torch.tensor([numbers[seed % len(numbers)] for seed in seeds], dtype=torch.int64)


def _numbers(text: str, model: Model) -> Sequence[int]:
    return chosen_classes(text, model.class_names, model.num_classes, model.name)


def _from_dataset(
    model: Model, dataset: ImageDataset, seeds: Sequence[int], without: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Rows of the data set for what the network takes, except for what is known already."""
    conditions = model.net.config.backbone.conditions
    offered = {c.name: c for c in dataset.conditions}
    taken = [c for c in conditions if c.name in offered and c.name not in without]
    unequal = [c for c in taken if offered[c.name] != c]
    if unequal or not (taken or reads_captions(model, dataset)):
        raise ValueError(
            f"{dataset.name} must have what {model.name} takes"
            f" ({described(unequal or conditions)}), it has {described(dataset.conditions)}"
        )
    rows = [seed % len(dataset) for seed in seeds]
    return dataset.conditioning(rows, names=[c.name for c in taken]).values
