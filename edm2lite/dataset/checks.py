"""Everything in a data set looked at: what is damaged, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from edm2lite.dataset.base import ImageDataset
from edm2lite.dataset.shards import INDEX, LABELS
from edm2lite.tensorfile import verify
from edm2lite.threads import map_in_threads


def find_problems(
    dataset: ImageDataset,
    num_threads: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[str]:
    """One line for each image or file that is damaged; reads every byte.

    Args:
        dataset: Whose labels and index were found in order when it was opened.
        num_threads: That read.
        progress: Called with the number of images looked at, and of all.
    """
    path = Path(dataset.name)
    if (path / INDEX).is_file():
        for file in sorted([*path.glob("latents-*.safetensors"), *path.glob(LABELS)]):
            try:
                verify(file)
            except (ValueError, FileNotFoundError) as error:
                yield str(error)

    def look(index: int) -> str | None:
        try:
            stored = dataset.read(index)
        except ValueError as error:
            return str(error)
        if dataset.encoder is not None and (stored[len(stored) // 2 :] < 0).any():
            return f"{dataset.names[index]} in {path} has a negative standard deviation"
        return None

    for done, fault in enumerate(map_in_threads(look, range(len(dataset)), num_threads), 1):
        if fault is not None:
            yield fault
        progress(done, len(dataset))


def notes(dataset: ImageDataset) -> Iterator[str]:
    """One line for each thing that is odd but can be trained on."""
    labels = dataset.labels
    if labels is None or labels.ndim != 1:
        return
    missing = int((labels < 0).sum())
    if missing:
        yield f"{missing} images have no label"
    empty = int((np.bincount(labels[labels >= 0], minlength=dataset.label_dim) == 0).sum())
    if empty:
        yield f"{empty} of {dataset.label_dim} classes have no image"
