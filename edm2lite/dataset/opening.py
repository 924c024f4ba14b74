"""Opening a data set, whatever its form.

- ``digits``: scikit-learn's handwritten digits
- a folder or ZIP of images: PNG, JPEG and others, or uint8 NPY, anywhere below the top, with
  ``dataset.json`` or, for image files, a folder per class. Pixels and labels are those that
  ``edm2lite dataset convert`` would store; gray files have one channel, as with ``--gray``
- a folder or ZIP of latents: NPY of floats [2C, H, W] (the form of EDM2), and ``dataset.json``
- a folder with ``latents.json``: latents in shards, as ``edm2lite dataset encode`` writes them
- ``module:function``: the :class:`edm2lite.dataset.base.ImageDataset` that a function of yours
  returns

``dataset.json`` holds labels, sizes, condition images and captions, see
:mod:`edm2lite.dataset.table`; captions may also lie beside the images, see
:mod:`edm2lite.dataset.captions`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edm2lite.dataset.base import ImageDataset
from edm2lite.dataset.captions import stated_captions
from edm2lite.dataset.condition_files import (
    image_names,
    paired_files,
    read_normalization,
    read_pairs,
    with_condition_images,
)
from edm2lite.dataset.decoding import SUFFIXES
from edm2lite.dataset.files import open_files
from edm2lite.dataset.images import load_array, open_images
from edm2lite.dataset.labels import stated_labels, table_labels
from edm2lite.dataset.latents import open_arrays
from edm2lite.dataset.shards import INDEX, is_incomplete, open_shards
from edm2lite.dataset.table import read_table
from edm2lite.kinds import Kinds

DATASETS: Kinds[Callable[[], ImageDataset]] = Kinds(
    "data set", {"digits": "edm2lite.dataset.digits:open_digits"}
)
"""Data sets that a function returns, by name; one of yours is ``module:function``."""

MODEL_FILES = ("model.safetensors", "last.safetensors", "run.json")
"""A folder with one of these is an exported model or a run, and no data set."""

FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def open_dataset(source: str | Path) -> ImageDataset:
    """A data set of any of the forms listed above.

    Args:
        source: ``"digits"``, a path, or ``"module:function"``. A file or folder of that name is
            preferred to a function, and makes ``"digits"`` ambiguous (:func:`is_builtin`). The
            module is imported and its function called without arguments, so name only functions
            that you trust.

    Raises:
        FileNotFoundError: If there is no file or folder of that name.
        ValueError: If the name is ambiguous, it holds no images, its ``dataset.json`` does not fit
            them, or the function does not exist or returns something else.
        ImportError: If ``digits`` is opened without scikit-learn.

    Example:
        >>> digits = open_dataset("digits")
        >>> len(digits), digits.image_shape, digits.label_dim
        (1797, (1, 8, 8), 10)
    """
    name, path = str(source), Path(source)
    if is_builtin(source):
        return DATASETS.find(name)()
    if path.exists():  # its name must not be that of another data set
        return _open_stored(path.absolute() if name in DATASETS else path)
    if FUNCTION.fullmatch(name):
        return _from_function(name)
    raise FileNotFoundError(
        f"no data set at {path}; give a folder or ZIP of images or latents, 'digits' for"
        " scikit-learn's, or module:function for one that a function of yours returns"
    )


def is_builtin(source: str | Path, *, or_model: bool = False, among: Kinds[Any] = DATASETS) -> bool:
    """Whether a name is that of a data set that comes with edm2lite, and cannot mean anything else.

    A :class:`~pathlib.Path` of something that exists is never such a name.

    Args:
        source: Name of a data set.
        or_model: Whether it may also be the name of a model. If not, the folder of a model is not
            what was meant.
        among: Data sets that come with edm2lite.

    Raises:
        ValueError: If there is a file or folder of that name, which could be meant too.

    Example:
        >>> is_builtin("digits"), is_builtin("./digits"), is_builtin("digits.zip")
        (True, False, False)
    """
    name, path = str(source), Path(source)
    if name not in among or (isinstance(source, Path) and path.exists()):
        return False
    is_model = any((path / file).is_file() for file in MODEL_FILES)
    if path.exists() and (or_model or not is_model):
        raise ValueError(
            f"{name} must name one thing, it is a data set of edm2lite and"
            f" {'a folder' if path.is_dir() else 'a file'} here; write ./{name} for the latter, or"
            f" {among.target(name)} for the data set"
        )
    return True


def _from_function(name: str) -> ImageDataset:
    function = DATASETS.find(name)
    if not callable(function):
        raise ValueError(f"data set {name} must be a function without arguments, got {function!r}")
    dataset = function()
    if not isinstance(dataset, ImageDataset):
        raise ValueError(
            f"data set {name} must return an edm2lite.dataset.ImageDataset, it returned"
            f" {type(dataset).__name__}"
        )
    return dataset


def _open_stored(path: Path) -> ImageDataset:
    if (path / INDEX).is_file():
        return open_shards(path)
    if path.is_dir() and is_incomplete(path):
        raise ValueError(
            f"{path} holds shards of an encoding that has not ended; run the same edm2lite dataset"
            " encode command again to complete it"
        )
    files = open_files(path)
    content = read_table(files)
    pairs = read_pairs(content, str(path))
    stored = [name for name in files.names if name.lower().endswith((*SUFFIXES, ".npy"))]
    names = image_names(stored, pairs, str(path))
    if not names:
        raise ValueError(f"{path} must hold images ({', '.join(SUFFIXES)}) or .npy, found none")
    arrays = [n for n in names if n.endswith(".npy")]
    if arrays and len(arrays) < len(names):
        raise ValueError(
            f"{path} must hold image files or arrays, it has both; for example"
            f" {next(n for n in names if not n.endswith('.npy'))} and {arrays[0]}"
        )
    paired = paired_files(pairs, names, files)
    if arrays:
        table = table_labels(content, names, str(path))
    else:
        table = stated_labels(content, names, files)
    if arrays and load_array(files.read(names[0]), names[0], str(path)).dtype.kind == "f":
        if pairs:
            raise ValueError(
                f"latents in {path} cannot have condition images, its dataset.json lists some;"
                " remove conditions from dataset.json, or use pixels"
            )
        dataset = open_arrays(files, names, table)
    else:
        images = open_images(files, names, table, content.get("sizes"))
        normalization = read_normalization(content, str(path))
        dataset = with_condition_images(images, files, paired, normalization)
    return dataclasses.replace(dataset, captions=stated_captions(content, names, files))
