"""Which images of its data set a run is trained on, and as which class."""

from __future__ import annotations

import dataclasses

from edm2lite.dataset import ImageDataset
from edm2lite.dataset.subset import rows_of_classes, subset, told_class
from edm2lite.models.model import Model
from edm2lite.network.conditions import ClassLabel

from .config import RunConfig


def selected(dataset: ImageDataset, config: RunConfig) -> ImageDataset:
    """The images that ``data.classes`` and ``data.per_class`` choose, told ``data.as_class``.

    Args:
        dataset: The data set of the configuration.
        config: Configuration of the run.

    Raises:
        ValueError: If the data set has no such classes, or the network has none.

    Example:
        >>> from edm2lite.dataset import open_dataset
        >>> from edm2lite.training import load_config
        >>> config = load_config("digits", ["data.classes=[3, 4]", "data.per_class=5"])
        >>> len(selected(open_dataset("digits"), config))
        10
    """
    data = config.data
    if data.classes is not None or data.per_class is not None:
        dataset = subset(dataset, rows_of_classes(dataset, data.classes, data.per_class))
    if data.as_class is None:
        return dataset
    labels = [c for c in config.net.backbone.conditions if isinstance(c, ClassLabel)]
    return told_class(dataset, data.as_class, labels[0].num_classes if labels else 0)


def with_class_names(dataset: ImageDataset, base: Model | None) -> ImageDataset:
    """The data set, whose classes have the names that a model knows if they have none.

    Args:
        dataset: Training data.
        base: The model that is fine-tuned, or None.
    """
    if base is None or dataset.table is None or dataset.class_names:
        return dataset
    names = base.class_names[: dataset.label_dim]
    return dataclasses.replace(dataset, table=dataclasses.replace(dataset.table, classes=names))
