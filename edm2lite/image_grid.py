"""Images [C, H, W] side by side in one picture, and pictures as PNG.

Every picture that edm2lite writes pixel by pixel is laid out here: the mosaic of ``generate``, the
samples of a run, the contact sheet of a data set and the images in the page of a sweep.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

LINE = 16
"""Height in pixels of a line of text in a picture."""

_LABELED = 64  # smallest width of an image with a label, in pixels


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Positions of equal cells in a picture that is filled row by row.

    Attributes:
        num: Number of cells.
        columns: Number of cells in a row.
        height, width: Size of a cell in pixels.
        gap: Pixels between two cells, and between a cell and the edge of the picture.

    Example:
        >>> layout = Layout(num=5, columns=3, height=10, width=20, gap=1)
        >>> layout.size, layout.corner(4)
        ((23, 64), (12, 22))
    """

    num: int
    columns: int
    height: int
    width: int
    gap: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture in pixels."""
        rows = -(-self.num // self.columns)
        step_y, step_x = self.height + self.gap, self.width + self.gap
        return rows * step_y + self.gap, self.columns * step_x + self.gap

    def corner(self, index: int) -> tuple[int, int]:
        """Row and column of the top left pixel of a cell."""
        row, column = divmod(index, self.columns)
        step_y, step_x = self.height + self.gap, self.width + self.gap
        return row * step_y + self.gap, column * step_x + self.gap


def arrange(
    images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    columns: int,
    *,
    zoom: int = 1,
    gap: int = 0,
    background: int = 255,
) -> NDArray[np.uint8]:
    """One picture [C, H, W] of images of equal size, row by row.

    Args:
        images: uint8 images, [N, C, H, W] or a sequence of N arrays [C, H, W].
        columns: Number of images in a row; the last row may be shorter.
        zoom: Whole factor by which each image is enlarged, without smoothing.
        gap: Pixels between images and around them all.
        background: Value of the pixels that belong to no image.

    Example:
        >>> images = np.full((3, 1, 2, 2), 7, np.uint8)
        >>> arrange(images, columns=2, background=0)[0]
        array([[7, 7, 7, 7],
               [7, 7, 7, 7],
               [7, 7, 0, 0],
               [7, 7, 0, 0]], dtype=uint8)
    """
    channels, height, width = images[0].shape
    layout = Layout(
        num=len(images), columns=columns, height=height * zoom, width=width * zoom, gap=gap
    )
    picture = np.full((channels, *layout.size), background, dtype=np.uint8)
    for i, image in enumerate(images):
        y, x = layout.corner(i)
        enlarged = image.repeat(zoom, axis=1).repeat(zoom, axis=2)
        picture[:, y : y + layout.height, x : x + layout.width] = enlarged
    return picture


def mosaic(images: Sequence[NDArray[np.uint8]], columns: int) -> NDArray[np.uint8]:
    """One picture [C, H, W] of images [C, H, W] with white lines between them.

    Images below 48 pixels are enlarged by a whole factor, to at most 48.

    Example:
        >>> mosaic([np.zeros((3, 32, 32), np.uint8)] * 6, columns=3).shape
        (3, 67, 100)
    """
    zoom = max(1, 48 // images[0].shape[1])
    return arrange(images, columns, zoom=zoom, gap=max(1, zoom // 2))


def labeled_mosaic(
    images: Sequence[NDArray[np.uint8]], columns: int, labels: Sequence[str], *, zoom: int = 1
) -> NDArray[np.uint8]:
    """One picture [C, H, W] of images [C, H, W] with their labels, white between them.

    A label that all images of a column share stands above it, if all columns have one; otherwise
    there is a label below every image. Images below 64 pixels are enlarged by a whole factor.

    Args:
        images: uint8 images of equal size, C = 1 or 3.
        columns: Number of images in a row.
        labels: Label of each image; of a long one, the beginning is drawn.
        zoom: Smallest factor by which images are enlarged.

    Example:
        >>> images = [np.zeros((1, 8, 8), np.uint8)] * 4
        >>> labeled_mosaic(images, 2, ["cat", "dog", "cat", "dog"]).shape
        (1, 156, 140)
        >>> labeled_mosaic(images, 2, ["cat", "dog", "owl", "fox"]).shape
        (1, 172, 140)
    """
    columns = min(columns, len(images))
    zoom = max(zoom, -(-_LABELED // images[0].shape[2]))
    height, width = zoom * images[0].shape[1], zoom * images[0].shape[2]
    is_above = all(label == labels[i % columns] for i, label in enumerate(labels))
    texts = [wrapped_lines(label, width) for label in labels[: columns if is_above else None]]
    room = LINE * max(map(len, texts))
    above, below = (room, 0) if is_above else (0, room)
    layout = Layout(num=len(images), columns=columns, height=height + below, width=width, gap=4)
    size = (layout.size[1], layout.size[0] + above)
    picture = Image.new("L" if len(images[0]) == 1 else "RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for i, image in enumerate(images):
        y, x = layout.corner(i)
        enlarged = Image.fromarray(channels_last(image)).resize(
            (width, height), Image.Resampling.NEAREST
        )
        picture.paste(enlarged, (x, y + above))
        for k, line in enumerate(texts[i] if i < len(texts) else ()):
            at = LINE * k + 1 + (0 if is_above else y + height)
            font = text_font(line.isascii())
            draw.text((x + width // 2, at), line, "black", font, anchor="ma")
    pixels = np.asarray(picture)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


@cache
def text_font(is_ascii: bool = True) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of labels in pictures.

    Pillow's own has no accents, Greek or Cyrillic; for texts with such the one that comes with
    matplotlib is taken, if that is installed.

    Args:
        is_ascii: Whether the text has plain letters only.

    Example:
        >>> text_font().getlength("") == 0
        True
    """
    found = None if is_ascii else find_spec("matplotlib")
    if found is not None and found.origin is not None:
        path = Path(found.origin).with_name("mpl-data") / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size=11)
    return ImageFont.load_default(size=11)


def wrapped_lines(text: str, width: int, max_lines: int = 3) -> list[str]:
    """The first lines of a text, none wider than ``width`` pixels, broken at spaces if possible.

    Example:
        >>> wrapped_lines("smileys and emotion", 64)
        ['smileys and', 'emotion']
    """
    lines: list[str] = []
    rest, font = " ".join(text.split()), text_font(text.isascii())
    while rest and len(lines) < max_lines:
        end = 1
        while end < len(rest) and font.getlength(rest[: end + 1]) <= width:
            end += 1
        space = rest.rfind(" ", 1, end + 1) if end < len(rest) else -1
        end = space if space > 0 else end
        lines.append(rest[:end])
        rest = rest[end:].lstrip()
    return lines


def channels_last(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The form that Pillow and matplotlib take: [H, W] of a gray image [1, H, W], else [H, W, C].

    Example:
        >>> channels_last(np.zeros((1, 4, 5), np.uint8)).shape
        (4, 5)
        >>> channels_last(np.zeros((3, 4, 5), np.uint8)).shape
        (4, 5, 3)
    """
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    return np.ascontiguousarray(pixels)


def png(image: NDArray[np.uint8]) -> bytes:
    """Content of a PNG file with a uint8 image [C, H, W], C = 1 or 3.

    The strategy Z_RLE of zlib takes a quarter to a third of the time of its default one, and files
    are as small: the filters of PNG have taken the longer matches out already.

    Example:
        >>> png(np.zeros((3, 4, 5), np.uint8))[:4]
        b'\\x89PNG'
    """
    buffer = io.BytesIO()
    Image.fromarray(channels_last(image)).save(buffer, format="PNG", compress_type=zlib.Z_RLE)
    return buffer.getvalue()
