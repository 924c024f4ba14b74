"""A contact sheet of a data set: one PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from edm2lite.atomic import replacing
from edm2lite.dataset.base import ImageDataset
from edm2lite.image_grid import Layout, channels_last
from edm2lite.models.encoders import LatentEncoder
from edm2lite.seeding import Purpose, normals, rng

CELL = 128
GAP = 6
CAPTION = 16


def choose(dataset: ImageDataset, count: int, seed: int = 0) -> list[int]:
    """Random images; with classes, from each of them in turn, and ordered by class."""
    order = rng(seed, 0, Purpose.ORDER).permutation(len(dataset))
    labels = dataset.labels
    if labels is None or labels.ndim != 1:
        return [int(i) for i in order[:count]]
    by_class = order[np.argsort(labels[order], kind="stable")]
    ordered = labels[by_class]
    first = np.searchsorted(ordered, ordered)  # where the class of each begins
    turn = np.arange(len(ordered)) - first  # how many of its class come before it
    chosen = np.sort(np.argsort(turn, kind="stable")[:count])
    return [int(i) for i in by_class[chosen]]


def captions(dataset: ImageDataset, indices: Sequence[int]) -> list[str]:
    """Class names where there are classes, otherwise the numbers of the images."""
    if dataset.table is None or dataset.table.values.ndim != 1:
        return [f"#{i}" for i in indices]
    names = dataset.table.classes
    labels = [int(dataset.table.values[i]) for i in indices]
    return ["no label" if k < 0 else names[k] if names else f"class {k}" for k in labels]


def pictures(dataset: ImageDataset, indices: Sequence[int], decode: bool) -> list[Image.Image]:
    """One picture per index: stored pixels, decoded latents, or the first channels of latents.

    Raises:
        ValueError, ImportError: An image is damaged; the autoencoder cannot be loaded.
    """
    if dataset.encoder is None:
        return [_picture(dataset.read(i)) for i in indices]
    draw = _decoded if decode else _false_colours
    return [draw(dataset, dataset.encoder, i) for i in indices]


def contact_sheet(
    path: Path, images: Sequence[Image.Image], names: Sequence[str], columns: int
) -> None:
    """Write the pictures in rows, each fitted into a cell with its name below."""
    columns = min(columns, len(images))
    layout = Layout(num=len(images), columns=columns, height=CELL + CAPTION, width=CELL, gap=GAP)
    sheet = Image.new("RGB", layout.size[::-1], "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for i, (image, name) in enumerate(zip(images, names, strict=True)):
        y, x = layout.corner(i)
        cell = _fitted(image)
        sheet.paste(cell, (x + (CELL - cell.width) // 2, y + (CELL - cell.height) // 2))
        draw.text((x + CELL // 2, y + CELL + 1), name[:22], "black", font, anchor="ma")
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


def _decoded(dataset: ImageDataset, encoder: LatentEncoder, index: int) -> Image.Image:
    raw = torch.from_numpy(dataset.images([index]))
    channels = dataset.image_shape[0]
    noise = normals([rng(0, index, Purpose.LATENT)], (channels, *raw.shape[2:]))
    return _picture(encoder.decode(encoder.encode(raw, noise))[0].numpy())


def _false_colours(dataset: ImageDataset, encoder: LatentEncoder, index: int) -> Image.Image:
    """The first three channels of the means, two standard deviations to either side."""
    channels = dataset.image_shape[0]
    raw = torch.from_numpy(dataset.images([index]))
    x = encoder.encode(raw, torch.zeros(1, channels, *raw.shape[2:]))[0, : min(channels, 3)]
    if len(x) == 2:
        x = x[:1]
    values = (x / (4 * encoder.sigma_data) + 0.5).clamp(0, 1) * 255
    return _picture(values.to(torch.uint8).numpy())
