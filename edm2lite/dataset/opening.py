"""Opening a data set, whatever its form.

=================================  ===============================================================
``digits``                         scikit-learn's handwritten digits
a folder or ZIP of images          PNG or uint8 NPY anywhere below the top, ``dataset.json``
a folder or ZIP of latents         NPY of float, [2C, H, W]: the EDM2 form, ``dataset.json``
a folder with ``latents.json``     latents in shards, as ``edm2lite dataset encode`` writes them
=================================  ===============================================================

``dataset.json`` holds ``{"labels": [["00000/img00000000.png", 3], ...]}`` for a data set with
classes. Its further keys are ours, and other tools pass over them: ``classes`` (names) and
``sizes`` (of images of several sizes).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edm2lite.dataset.base import ImageDataset
from edm2lite.dataset.files import open_files
from edm2lite.dataset.images import SUFFIXES, load_array, open_images
from edm2lite.dataset.labels import Labels, read_table, table_labels
from edm2lite.dataset.latents import open_arrays
from edm2lite.dataset.shards import INDEX, is_incomplete, open_shards


def open_dataset(source: str | Path) -> ImageDataset:
    """A data set of any of the forms above.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: It holds no image, or its dataset.json does not fit.
        ImportError: ``digits`` without scikit-learn.
    """
    if str(source) == "digits":
        return _digits()
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"no data set at {path}; give a folder or ZIP of images or latents, or 'digits' for"
            " scikit-learn's"
        )
    if (path / INDEX).is_file():
        return open_shards(path)
    if path.is_dir() and is_incomplete(path):
        raise ValueError(
            f"{path} holds shards of an encoding that has not ended; run the same edm2lite dataset"
            " encode command again to complete it"
        )
    files = open_files(path)
    names = [name for name in files.names if name.lower().endswith((*SUFFIXES, ".npy"))]
    if not names:
        raise ValueError(f"{path} must hold images ({', '.join(SUFFIXES)}) or .npy, found none")
    arrays = [n for n in names if n.endswith(".npy")]
    if arrays and len(arrays) < len(names):
        raise ValueError(
            f"{path} must hold image files or arrays, it has both; for example"
            f" {next(n for n in names if not n.endswith('.npy'))} and {arrays[0]}"
        )
    content = read_table(files)
    table = table_labels(content, names, str(path))
    if arrays and load_array(files.read(names[0]), names[0], str(path)).dtype.kind == "f":
        return open_arrays(files, names, table)
    return open_images(files, names, table, content.get("sizes"))


def _digits() -> ImageDataset:
    """1797 handwritten digits, 8x8 pixels of 0..16 stretched to 0..255, 10 classes."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the digits come with scikit-learn; pip install 'edm2lite[demo]'"
        ) from error
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    table = Labels(digits.target.astype(np.int64), 10)
    names = [f"digit {i}" for i in range(len(images))]
    return ImageDataset("digits", len(images), (1, 8, 8), lambda i: images[i], table, None, names)
