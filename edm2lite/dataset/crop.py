"""Photos, resized and cropped to the size that a network takes."""

from __future__ import annotations

from typing import Literal

from PIL import Image

Transform = Literal["lanczos", "dhariwal"]


def is_gray(image: Image.Image) -> bool:
    """Whether an image has one channel besides transparency."""
    return image.mode in ("1", "L", "LA")


def cover(image: Image.Image, height: int, width: int, transform: Transform) -> Image.Image:
    """The image resampled so that it just covers a size, with the center cut out.

    Args:
        image: Image in mode L or RGB.
        height: Height of the result.
        width: Width of the result.
        transform: Method of resampling. ``"lanczos"`` resamples once. ``"dhariwal"`` is the method
            of the ImageNet papers since ADM: halve by means of 2x2 pixels while the image stays at
            least as large as the result, then resample bicubically.

    Example:
        >>> cover(Image.new("RGB", (40, 30)), 8, 8, "lanczos").size
        (8, 8)
    """
    if transform == "dhariwal":
        while image.width >= 2 * width and image.height >= 2 * height:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    image = _resize(image, scale, transform)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def shorter_side(image: Image.Image, length: int, transform: Transform) -> Image.Image:
    """The image resized so that its shorter side has a length; the aspect ratio is kept."""
    if transform == "dhariwal":
        while min(image.size) >= 2 * length:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return _resize(image, length / min(image.size), transform)


def kept_area(source: tuple[int, int], target: tuple[int, int]) -> float:
    """Share of an image's area that :func:`cover` keeps; both sizes as (height, width)."""
    ratio = (source[1] / source[0]) / (target[1] / target[0])
    return min(ratio, 1 / ratio)


def _resize(image: Image.Image, scale: float, transform: Transform) -> Image.Image:
    size = (round(image.width * scale), round(image.height * scale))
    if size == image.size:
        return image
    lanczos, bicubic = Image.Resampling.LANCZOS, Image.Resampling.BICUBIC
    return image.resize(size, lanczos if transform == "lanczos" else bicubic)
