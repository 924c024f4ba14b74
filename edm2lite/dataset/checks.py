"""A look at everything in a data set: what is damaged, by name, and what is unusual."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from edm2lite.dataset.base import ImageDataset
from edm2lite.dataset.conditions import DatasetCondition
from edm2lite.dataset.shards import INDEX, LABELS
from edm2lite.tensorfile import verify
from edm2lite.threads import map_in_threads


def find_problems(
    dataset: ImageDataset,
    num_threads: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[str]:
    """One line for each image, condition or file that is damaged; reads every byte.

    Args:
        dataset: Data set that :func:`edm2lite.dataset.open_dataset` opened, which checks labels,
            captions, sizes and the pairing of condition images.
        num_threads: Number of reader threads.
        progress: Function that is called with the number of images checked, and of all.

    Example:
        >>> from edm2lite.dataset import open_dataset
        >>> list(find_problems(open_dataset("digits")))
        []
    """
    path = Path(dataset.name)
    if (path / INDEX).is_file():
        for file in sorted([*path.glob("latents-*.safetensors"), *path.glob(LABELS)]):
            try:
                verify(file)
            except (ValueError, FileNotFoundError) as error:
                yield str(error)
    found = map_in_threads(
        lambda index: _problems_of(dataset, index), range(len(dataset)), num_threads
    )
    for done, problems in enumerate(found, 1):
        yield from problems
        progress(done, len(dataset))


def notes(dataset: ImageDataset) -> Iterator[str]:
    """One line for each thing that is unusual but can be trained on.

    Example:
        >>> import numpy as np
        >>> from edm2lite.dataset.labels import Labels
        >>> table = Labels(np.array([0, -1, 2]), 3)
        >>> blank = ImageDataset("blank", 3, (1, 8, 8), lambda i: np.zeros((1, 8, 8)), table)
        >>> list(notes(blank))
        ['1 images have no label', '1 of 3 classes have no image']
    """
    if dataset.captions is not None:
        without = sum(not texts for texts in dataset.captions.texts)
        if without:
            yield f"{without} images have no caption"
    labels = dataset.labels
    if labels is None or labels.ndim != 1:
        return
    missing = int((labels < 0).sum())
    if missing:
        yield f"{missing} images have no label"
    empty = int((np.bincount(labels[labels >= 0], minlength=dataset.label_dim) == 0).sum())
    if empty:
        yield f"{empty} of {dataset.label_dim} classes have no image"


def _problems_of(dataset: ImageDataset, index: int) -> list[str]:
    problems = []
    try:
        stored = dataset.read(index)
        if dataset.encoder is not None and (stored[len(stored) // 2 :] < 0).any():
            problems.append(
                f"{dataset.title(index)} in {dataset.name} has a negative standard deviation"
            )
    except ValueError as error:
        problems.append(str(error))
    for known in dataset.dataset_conditions:
        try:
            _check_condition(dataset, known, index)
        except ValueError as error:
            problems.append(str(error))
    return problems


def _check_condition(dataset: ImageDataset, known: DatasetCondition, index: int) -> None:
    value = known.rows([index])
    height, width = dataset.image_shape[1:] if dataset.sizes is None else dataset.sizes[index]
    image = torch.empty(1, dataset.image_shape[0], int(height), int(width), device="meta")
    try:
        known.condition.check(value, image)
    except ValueError as error:
        raise ValueError(f"{dataset.title(index)} in {dataset.name}: {error}") from error
    if value.is_floating_point() and not value.isfinite().all():
        raise ValueError(
            f"{known.name} of {dataset.title(index)} in {dataset.name} must be finite, it has NaN"
            " or infinity"
        )
