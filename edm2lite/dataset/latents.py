"""Latents as NPY files, the form of the EDM2 paper's own data sets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edm2lite.dataset.base import ImageDataset
from edm2lite.dataset.files import Files
from edm2lite.dataset.images import load_array
from edm2lite.dataset.labels import Labels
from edm2lite.models.encoders import EDM2_LATENTS, LatentEncoder

logger = logging.getLogger(__name__)


def open_arrays(files: Files, names: Sequence[str], table: Labels | None) -> ImageDataset:
    """A data set of latent distributions, float [2C, H, W], all of one size.

    Such files say nothing about the autoencoder. Latents of four channels are taken for those that
    the EDM2 paper's tool writes; a configuration may say otherwise.

    Args:
        files: Files of the data set.
        names: Names of the latents among them.
        table: Labels, or None.

    Raises:
        ValueError: If the first file is damaged, or has an odd number of channels.
    """
    origin = str(files.path)
    shape = load_array(files.read(names[0]), names[0], origin).shape
    if shape[0] % 2:
        raise ValueError(
            f"{names[0]} in {origin} must have C channels of means and C of standard deviations,"
            f" got {shape[0]} channels in all; encode the images by edm2lite dataset encode"
        )

    def read(index: int) -> NDArray[Any]:
        array = load_array(files.read(names[index]), names[index], origin)
        if array.shape != shape:
            raise ValueError(
                f"all latents in {origin} must be of one shape, {names[index]} is {array.shape}"
                f" where {names[0]} is {shape} (channels, height, width)"
            )
        return checked(array.astype(np.float32, copy=False), names[index], origin)

    encoder = LatentEncoder()
    if shape[0] == 8:
        encoder = EDM2_LATENTS
        logger.warning(
            "%s does not say what made its latents; they are taken for those of the EDM2 paper (%s,"
            " mean %s, std %s); set encoder.vae, .mean, .std and .input_range if they are not",
            origin, encoder.vae, list(encoder.mean), list(encoder.std),
        )  # fmt: skip
    image_shape = (shape[0] // 2, shape[1], shape[2])
    return ImageDataset(origin, len(names), image_shape, read, table, None, names, encoder)


def checked(latents: NDArray[np.float32], name: str, origin: str) -> NDArray[np.float32]:
    """The latents of one image, if they are finite.

    Raises:
        ValueError: If a value is NaN or infinite.
    """
    if not np.isfinite(latents).all():
        raise ValueError(f"{name} in {origin} must hold finite latents, it has NaN or infinity;"
                         " encode that image again or remove it")  # fmt: skip
    return latents
