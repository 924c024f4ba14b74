"""A contact sheet of a data set: one PNG with random images, their classes and condition images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from edm2lite.atomic import replacing
from edm2lite.dataset.base import ImageDataset
from edm2lite.dataset.conditions import DatasetCondition, false_colors
from edm2lite.image_grid import LINE, Layout, channels_last, text_font, wrapped_lines
from edm2lite.models.class_names import class_title
from edm2lite.models.encoders import LatentEncoder
from edm2lite.seeding import Purpose, normals, rng

CELL = 128
GAP = 6


def draw_preview(
    dataset: ImageDataset,
    path: str | Path,
    num: int = 64,
    columns: int = 8,
    seed: int = 0,
    *,
    decode: bool = False,
) -> None:
    """Write a contact sheet: random images with class and caption, condition images to their right.

    Of several captions of an image, the first is drawn, or what fits of it.

    Args:
        dataset: Data set.
        path: PNG file to write.
        num: Number of images.
        columns: Number of images in a row.
        seed: Seed of the choice of images; with classes, an equal number of each is taken.
        decode: Whether latents are decoded; otherwise they are shown in false colors.

    Raises:
        ValueError: If an image is damaged, or pixels are to be decoded.
        ImportError: If the autoencoder needs a package that is not installed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from edm2lite.dataset import open_dataset
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     draw_preview(open_dataset("digits"), Path(folder, "sheet.png"), num=4, columns=2)
        ...     with Image.open(Path(folder, "sheet.png")) as sheet:
        ...         print(sheet.size)
        (274, 306)
    """
    if decode and dataset.encoder is None:
        raise ValueError(f"--decode is for latents, {dataset.name} holds pixels; leave it out")
    chosen = choose(dataset, num, seed)
    rows = [pictures(dataset, chosen, decode)]
    names = [[titles(dataset, i) for i in chosen]]
    for known in dataset.extra_conditions:
        drawn = _condition_pictures(known, chosen)
        if drawn:
            rows.append(drawn)
            names.append([[f"condition {known.name}"[:22]]] * len(chosen))
    side_by_side = [image for images in zip(*rows, strict=True) for image in images]
    below = [name for texts in zip(*names, strict=True) for name in texts]
    contact_sheet(Path(path), side_by_side, below, columns * len(rows))


def choose(dataset: ImageDataset, count: int, seed: int = 0) -> list[int]:
    """Indices of random images; with classes, of each of them in turn, and ordered by class."""
    order = rng(seed, 0, Purpose.ORDER).permutation(len(dataset))
    labels = dataset.labels
    if labels is None or labels.ndim != 1:
        return [int(i) for i in order[:count]]
    by_class = order[np.argsort(labels[order], kind="stable")]
    ordered = labels[by_class]
    first = np.searchsorted(ordered, ordered)  # where the class of each begins
    turn = np.arange(len(ordered)) - first  # number of images of its class before it
    chosen = np.sort(np.argsort(turn, kind="stable")[:count])
    return [int(i) for i in by_class[chosen]]


def titles(dataset: ImageDataset, index: int) -> list[str]:
    """Lines below an image: its class and its first caption, or its number if it has neither."""
    lines = []
    if dataset.table is not None and dataset.table.values.ndim == 1:
        lines.append(class_title(dataset.class_names, int(dataset.table.values[index]))[:22])
    if dataset.captions is not None:
        lines += wrapped_lines(dataset.captions.text(index), CELL)
    return lines or [f"#{index}"]


def pictures(dataset: ImageDataset, indices: Sequence[int], decode: bool) -> list[Image.Image]:
    """One picture per index: stored pixels, decoded latents, or the first channels of latents.

    Raises:
        ValueError: If an image is damaged, or the autoencoder cannot be loaded.
        ImportError: If the autoencoder needs a package that is not installed.
    """
    if dataset.encoder is None:
        return [_picture(dataset.read(i)) for i in indices]
    draw = _decoded if decode else _first_channels
    return [draw(dataset, dataset.encoder, i) for i in indices]


def contact_sheet(
    path: Path, images: Sequence[Image.Image], names: Sequence[Sequence[str]], columns: int
) -> None:
    """Write the pictures in rows, each fitted into a cell with the lines of its name below."""
    columns, height = min(columns, len(images)), CELL + LINE * max(map(len, names))
    layout = Layout(num=len(images), columns=columns, height=height, width=CELL, gap=GAP)
    sheet = Image.new("RGB", layout.size[::-1], "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, lines) in enumerate(zip(images, names, strict=True)):
        y, x = layout.corner(i)
        cell = _fitted(image)
        sheet.paste(cell, (x + (CELL - cell.width) // 2, y + (CELL - cell.height) // 2))
        for k, line in enumerate(lines):
            font = text_font(line.isascii())
            draw.text((x + CELL // 2, y + CELL + LINE * k + 1), line, "black", font, anchor="ma")
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    with replacing(path, "wb") as file:
        file.write(buffer.getvalue())


def _fitted(image: Image.Image) -> Image.Image:
    """Tiny images are enlarged by a whole factor, so that their pixels show."""
    factor = CELL // max(image.size)
    if factor >= 4:
        size = (image.width * factor, image.height * factor)
        return image.resize(size, Image.Resampling.NEAREST)
    scale = CELL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _picture(image: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(channels_last(image))


def _condition_pictures(known: DatasetCondition, indices: Sequence[int]) -> list[Image.Image]:
    drawn = [known.drawn(i) for i in indices]
    return [_picture(image) for image in drawn if image is not None]


def _decoded(dataset: ImageDataset, encoder: LatentEncoder, index: int) -> Image.Image:
    raw = torch.from_numpy(dataset.images([index]))
    channels = dataset.image_shape[0]
    noise = normals([rng(0, index, Purpose.LATENT)], (channels, *raw.shape[2:]))
    return _picture(encoder.decode(encoder.encode(raw, noise))[0].numpy())


def _first_channels(dataset: ImageDataset, encoder: LatentEncoder, index: int) -> Image.Image:
    """The first three channels of the means, in false colors."""
    channels = dataset.image_shape[0]
    raw = torch.from_numpy(dataset.images([index]))
    x = encoder.encode(raw, torch.zeros(1, channels, *raw.shape[2:]))[0]
    return _picture(false_colors(x, encoder.sigma_data))
