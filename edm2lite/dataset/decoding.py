"""From an image file to pixels, in one way for converting and reading: upright, without alpha."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageColor, ImageFile, ImageOps, UnidentifiedImageError

from edm2lite.messages import one_line

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
)  # fmt: skip
"""Endings of the names of image files, in lower case."""

Exif = Literal["turn", "ignore"]
_ORIENTATION = ExifTags.Base.Orientation
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")  # those of SUFFIXES, and no others
_DAMAGES = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError,
    TypeError, AttributeError, OverflowError, ZeroDivisionError, NotImplementedError, RuntimeError,
    AssertionError, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
"""What Pillow raises for damaged images."""
_DEEP = "more than 8 bits per channel; save it with 8"


class _UnusableError(Exception):
    """An image that is intact, and of a kind that is not taken."""


def open_image(data: bytes, name: str, origin: str) -> Image.Image:
    """The image in a file, decoded.

    Args:
        data: Content of the file.
        name: Name of the file for messages.
        origin: Name of the data set for messages.

    Raises:
        ValueError: If the file is damaged or of another format, has more than 8 bits per channel,
            which Pillow would cut off, or more pixels than Pillow takes for harmless.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        _check(image, data)
        image.load()
        return image
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{name} in {origin} cannot be read as an image, it is none of {', '.join(_FORMATS)};"
            " remove it"
        ) from error
    except _DAMAGES as error:
        raise ValueError(
            f"{name} in {origin} cannot be read as an image ({one_line(error, 200)}); remove or"
            " repair it"
        ) from error
    except _UnusableError as error:
        raise ValueError(f"{name} in {origin} is not usable: {error}") from error


def _check(image: ImageFile.ImageFile, data: bytes) -> None:
    """Refuse what Pillow would open with other pixels, or with all memory."""
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and image.width * image.height > most:
        raise _UnusableError(f"it has {image.width} x {image.height} pixels, more than {most}")
    for tile in image.tile:
        stored, *more = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        is_deep = str(stored).startswith(("RGB", "RGBA", "LA", "CMYK")) and ";16" in str(stored)
        if is_deep or (tile.codec_name.startswith("ppm") and more[-1] > 255):
            raise _UnusableError(f"it has {_DEEP}")
    if image.format == "PNG":
        _check_png(data)


def _check_png(data: bytes) -> None:
    """Compare pixels with their checksums, which Pillow passes over."""
    at = 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"IDAT":
            stored = int.from_bytes(data[end : end + 4], "big")
            if zlib.crc32(memoryview(data)[at + 4 : end]) != stored:
                raise ValueError("its pixels do not match their checksum")
        at = end + 4


def upright(
    image: Image.Image, gray: bool, exif: Exif = "turn", background: str | None = "white"
) -> Image.Image:
    """The picture as a viewer shows it: turned as its EXIF says, on white where transparent.

    Args:
        image: Image of any mode.
        gray: Whether the result has one channel, mode L; otherwise it is RGB.
        exif: Whether the image is turned as its EXIF says, or left as it is stored.
        background: Color behind transparent parts, as :mod:`PIL.ImageColor` names it. None leaves
            out the transparency, so that the colors that are stored there show.

    Raises:
        ValueError: If the image has more than 8 bits per channel.

    Example:
        >>> clear = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
        >>> upright(clear, gray=False).getpixel((0, 0))
        (255, 255, 255)
        >>> upright(clear, gray=False, background=None).getpixel((0, 0))
        (10, 20, 30)
    """
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"it has mode {image.mode}, {_DEEP}")
    # EXIF is part of info, which is empty in most converted files: looking there costs nothing
    if exif == "turn" and image.info and image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")  # also without a background: PIL warns of palettes otherwise
        if background is not None:
            behind = Image.new("RGBA", image.size, background)
            image = Image.alpha_composite(behind, image)
    mode = "L" if gray else "RGB"
    return image if image.mode == mode else image.convert(mode)


def check_background(background: str | None) -> None:
    """Refuse a name that is no opaque color.

    Raises:
        ValueError: If PIL does not know the color, or it is transparent.

    Example:
        >>> check_background("#102030")
    """
    if background is None:
        return
    try:
        is_opaque = len(ImageColor.getrgb(background)) == 3
    except ValueError:
        is_opaque = False
    if not is_opaque:
        raise ValueError(
            "background must be an opaque color such as white, black or #808080, got"
            f" {background!r}"
        )


def decode_image(data: bytes, name: str, origin: str) -> NDArray[np.uint8]:
    """uint8 [C, H, W] of an image file: gray as one channel, anything else as RGB.

    Pixels are those that :func:`edm2lite.dataset.convert_images` stores by default.

    Args:
        data: Content of the file.
        name: Name of the file for messages.
        origin: Name of the data set for messages.

    Raises:
        ValueError: If the file is damaged, or has more than 8 bits per channel.
    """
    image = open_image(data, name, origin)
    try:
        pixels = np.asarray(upright(image, gray=image.mode == "L"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} in {origin} is not usable: {error}") from error
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
