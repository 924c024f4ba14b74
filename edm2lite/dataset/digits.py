"""scikit-learn's handwritten digits, the data set of the examples and tests."""

from __future__ import annotations

import numpy as np
from PIL import Image

from edm2lite.dataset.base import ImageDataset
from edm2lite.dataset.collection import ImageCollection
from edm2lite.dataset.labels import Labels
from edm2lite.extras import require


def open_digits() -> ImageDataset:
    """1797 handwritten digits of 8 x 8 pixels: 0..16 stretched to 0..255, 10 classes.

    Raises:
        ImportError: If scikit-learn is not installed.

    Example:
        >>> open_digits().image_shape
        (1, 8, 8)
    """
    require("sklearn")
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    table = Labels(digits.target.astype(np.int64), 10, tuple("0123456789"))
    names = [f"digit {i}" for i in range(len(images))]
    return ImageDataset("digits", len(images), (1, 8, 8), lambda i: images[i], table, None, names)


def digits_collection(resolution: int | None = None) -> ImageCollection:
    """The digits as images to convert, for example with condition images.

    Args:
        resolution: Not used: they are what they are, and are resampled as others.

    Raises:
        ImportError: If scikit-learn is not installed.

    Example:
        >>> digits_collection().load(0).size
        (8, 8)
    """
    digits = open_digits()

    def load(index: int) -> Image.Image:
        return Image.fromarray(digits.read(index)[0])

    return ImageCollection(digits.name, digits.names, load, digits.table, gray=True)
