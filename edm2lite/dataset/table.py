"""``dataset.json``: what is known about the images of a folder or ZIP, by their names.

- ``labels``: [name, label] of every image, a label being a class index, a list of numbers or
  ``null``; ``null`` for a data set without labels
- ``label_dim``: number of classes, or length of the vectors
- ``classes``: names of the classes
- ``sizes``: [name, height, width] of every image, where they differ
- ``conditions``: by condition, [name, file of its condition image] of every image
- ``condition_normalization``: by condition, ``mean`` and ``std`` by which it is normalized
- ``captions``: [name, [text, ...]] of every image, see :mod:`edm2lite.dataset.captions`
- ``license``: license of the images and who is to be named with them, in words

EDM and EDM2 use ``labels`` in the same form and ignore the other keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edm2lite.dataset.files import Files
from edm2lite.dataset.labels import Labels
from edm2lite.strict_json import parse_object

TABLE = "dataset.json"
_LARGEST, _LARGEST_ROW = 2**20, 2**18
"""Bytes in all, and for each file: 1000 numbers take 20,000, 20,000 characters up to 240,000."""


def read_table(files: Files) -> dict[str, Any]:
    """The content of ``dataset.json``; empty if there is none.

    Raises:
        ValueError: If it is not a JSON object.
    """
    if TABLE not in files.names:
        return {}
    data = files.read(TABLE, _LARGEST + _LARGEST_ROW * len(files.names))
    try:
        return parse_object(data)
    except ValueError as error:
        raise ValueError(f"{TABLE} in {files.path} must be a JSON object, but {error}") from error


def table_text(
    names: Sequence[str],
    labels: Labels | None,
    sizes: Sequence[Any] = (),
    conditions: Mapping[str, Sequence[str]] | None = None,
    normalization: Mapping[str, Mapping[str, float]] | None = None,
    captions: Sequence[Sequence[str]] = (),
    license: str | None = None,
) -> str:
    """The text of a ``dataset.json``.

    Args:
        names: Names of the images.
        labels: Labels in that order, or None.
        sizes: (height, width) of every image if they differ, otherwise nothing.
        conditions: Condition -> file of the condition image of every image.
        normalization: Condition -> ``mean`` and ``std`` of its stored values.
        captions: Captions of every image, or nothing.
        license: License of the images, or None.
    """
    content: dict[str, Any] = {"labels": None}
    if labels is not None:
        rows = [None if row == -1 else row for row in labels.values.tolist()]
        content["labels"] = [[name, row] for name, row in zip(names, rows, strict=True)]
        content["label_dim"] = labels.label_dim
        if labels.classes:
            content["classes"] = list(labels.classes)
    if len(sizes):
        content["sizes"] = [[n, *map(int, s)] for n, s in zip(names, sizes, strict=True)]
    if conditions:
        content["conditions"] = {
            condition: [list(pair) for pair in zip(names, files, strict=True)]
            for condition, files in conditions.items()
        }
        content["condition_normalization"] = dict(normalization or {})
    if len(captions):
        content["captions"] = [[n, list(texts)] for n, texts in zip(names, captions, strict=True)]
    if license is not None:
        content["license"] = license
    return json.dumps(content)
