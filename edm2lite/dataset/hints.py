"""Condition images that are computed from the images themselves: what a network is to be told.

A hint is a function from the pixels of an image, as it is stored, to those of its condition image
of the same height and width. ``edm2lite dataset convert --condition edges`` stores them.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from edm2lite.kinds import Kinds

Pixels = NDArray[np.uint8]
Hint = Callable[[Pixels], Pixels]
"""Function from uint8 [H, W] or [H, W, 3] to a condition image of that height and width."""

HINTS: Kinds[Hint] = Kinds(
    "condition",
    {
        "edges": "edm2lite.dataset.hints:edges",
        "gray": "edm2lite.dataset.hints:gray",
        "outline": "edm2lite.dataset.hints:outline",
    },
)
"""Hints by name; besides these, ``lowres:N``."""

_LOWRES = re.compile(r"lowres:(\d+)")


def find_hint(name: str) -> Hint:
    """The hint of a name.

    Args:
        name: One of :data:`HINTS`, ``lowres:N`` with N at least 2, or ``module:function``.

    Raises:
        ValueError: If there is no such hint.

    Example:
        >>> pixels = np.array([[0, 40], [80, 120]], np.uint8)
        >>> find_hint("lowres:2")(pixels).tolist()
        [[60, 60], [60, 60]]
    """
    lowres = _LOWRES.fullmatch(name)
    if lowres is None:
        return HINTS.find(name)
    if (factor := int(lowres[1])) < 2:
        raise ValueError(f"lowres:N must have N of at least 2, got {name}")
    return lambda pixels: coarse(pixels, factor)


def gray(pixels: Pixels) -> Pixels:
    """Lightness, [H, W]: 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601).

    Example:
        >>> gray(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)).tolist()
        [[76, 29]]
    """
    return np.asarray(Image.fromarray(pixels).convert("L"))


def edges(pixels: Pixels) -> Pixels:
    """How fast lightness changes, [H, W]: the length of Sobel's gradient, the largest possible 255.

    Example:
        >>> edges(np.array([[0, 0, 255, 255]] * 3, np.uint8)).tolist()[1]
        [0, 180, 180, 0]
    """
    light = gray(pixels).astype(np.float64)
    slopes = [ndimage.sobel(light, axis=axis, mode="nearest") for axis in (0, 1)]
    length = np.hypot(*slopes) / (4 * np.sqrt(2))
    return np.asarray(np.rint(length).clip(0, 255), np.uint8)


def outline(pixels: Pixels) -> Pixels:
    """Where a shape ends, [H, W]: 255 at its pixels that touch what is outside, 0 elsewhere.

    The shape is what is lighter than the middle between the darkest and the lightest pixel, or
    darker, if that is the smaller part of the image. Pixels touch along their sides, and the border
    of the image is no end.

    Example:
        >>> square = np.zeros((5, 5), np.uint8)
        >>> square[1:4, 1:4] = 200
        >>> (outline(square) // 255).tolist()[1:3]
        [[0, 1, 1, 1, 0], [0, 1, 0, 1, 0]]
    """
    light = gray(pixels).astype(np.float64)
    shape = light > (light.min() + light.max()) / 2
    if shape.mean() > 0.5:
        shape = ~shape
    inside = ndimage.binary_erosion(shape, border_value=1)
    return np.asarray(np.where(shape & ~inside, 255, 0), np.uint8)


def coarse(pixels: Pixels, factor: int) -> Pixels:
    """The image at a lower resolution, each mean of factor x factor pixels in the place of these.

    Args:
        pixels: Pixels whose height and width are multiples of ``factor``.
        factor: Side of the squares.

    Raises:
        ValueError: If the sides are no multiples.
    """
    height, width = pixels.shape[:2]
    if height % factor or width % factor:
        raise ValueError(
            f"sides must be multiples of {factor} for lowres:{factor}, they are {height} x {width}"
        )
    rows, columns = height // factor, width // factor
    blocks = pixels.reshape(rows, factor, columns, factor, -1).mean(axis=(1, 3))
    means = np.rint(blocks).astype(np.uint8)
    large = means.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.asarray(large.reshape(pixels.shape))
