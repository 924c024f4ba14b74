"""Two data sets as one: the images of the first, then those of the second."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import ArrayLike

from edm2lite.dataset.base import ImageDataset
from edm2lite.dataset.captions import Captions
from edm2lite.dataset.conditions import DatasetCondition
from edm2lite.dataset.labels import Labels
from edm2lite.network.conditions import ClassLabel


def joined(
    first: ImageDataset, second: ImageDataset, names: Collection[str] | None = None
) -> ImageDataset:
    """The images of two data sets, with the labels, captions and conditions of the first.

    Args:
        first: Images that come first; those of both must have one size and form.
        second: Images after them. Their classes must be among those of the first, if that has any.
        names: Names of the conditions that are kept, the label among them. [default: all]

    Raises:
        ValueError: If images differ in size or form, or the second lacks what is known of the
            first.

    Example:
        >>> from edm2lite.dataset import open_dataset
        >>> digits = open_dataset("digits")
        >>> both = joined(digits, digits)
        >>> len(both), both.labels[[3, 1800]].tolist()
        (3594, [3, 3])
    """
    for what, a, b in (
        ("images of one shape", first.image_shape, second.image_shape),
        ("pixels, or latents of one encoder", first.encoder, second.encoder),
        ("images of one size", first.sizes is None, second.sizes is None),
    ):
        if a != b or (what.endswith("size") and not a):
            raise ValueError(
                f"{second.name} must have {what} with {first.name}, got {b} beside {a}"
            )
    count, kept = len(first), [c for c in first.conditions if names is None or c.name in names]
    return dataclasses.replace(
        first,
        name=f"{first.name} and {second.name}",
        num_images=count + len(second),
        read=lambda i: first.read(i) if i < count else second.read(i - count),
        table=_table(first, second) if any(isinstance(c, ClassLabel) for c in kept) else None,
        names=_names(first, second),
        extra_conditions=tuple(
            _condition(first, second, c.name) for c in first.extra_conditions if c.condition in kept
        ),
        captions=_captions(first, second),
    )


def _names(first: ImageDataset, second: ImageDataset) -> Sequence[str]:
    if not len(first.names) and not len(second.names):
        return ()
    return [dataset.title(i) for dataset in (first, second) for i in range(len(dataset))]


def _table(first: ImageDataset, second: ImageDataset) -> Labels | None:
    a, b = first.table, second.table
    if a is None:
        return None
    if b is None or a.values.shape[1:] != b.values.shape[1:] or a.values.dtype != b.values.dtype:
        raise ValueError(f"{second.name} must have labels of the kind that {first.name} has")
    if b.values.ndim == 1 and b.values.max(initial=-1) >= a.label_dim:
        raise ValueError(
            f"{second.name} must have classes of {first.name}, which are {a.label_dim}, got"
            f" {b.values.max()}"
        )
    return dataclasses.replace(a, values=np.concatenate([a.values, b.values]))


def _captions(first: ImageDataset, second: ImageDataset) -> Captions | None:
    if first.captions is None:
        return None
    others = second.captions or Captions([()] * len(second))
    return Captions([*first.captions.texts, *others.texts])


def _condition(first: ImageDataset, second: ImageDataset, name: str) -> DatasetCondition:
    found = [next((c for c in d.extra_conditions if c.name == name), None) for d in (first, second)]
    a, b = found
    told = [(c.condition, c.is_random, c.normalization) for c in found if c is not None]
    if a is None or b is None or told[0] != told[1]:
        raise ValueError(f"{second.name} must have {name} as {first.name} has it")
    count = len(first)

    def values(index: int, *draw: float) -> ArrayLike:
        known, row = (a, index) if index < count else (b, index - count)
        return known.rows([row], draw or None)[0].numpy()

    return dataclasses.replace(a, values=values, picture=None)
