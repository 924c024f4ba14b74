"""Images that generation begins with: variations of them, or a part of them filled in.

Image-to-image (SDEdit, arXiv 2108.01073) begins at the image plus noise of a level in between, and
solves from there. Filling in denoises to the known image wherever nothing is to be filled in.
Repeating steps (RePaint, arXiv 2201.09865) goes back up by fresh noise after a step and takes it
again, so that what is filled in can adapt to what is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from edm2lite.dataset import ImageDataset, open_dataset
from edm2lite.dataset.decoding import SUFFIXES, decode_image
from edm2lite.models.encoders import Encoder
from edm2lite.sampling.editing import Inpaint, LaterSteps, coarse_mask
from edm2lite.sampling.levels import first_state, sigmas_from
from edm2lite.sampling.settings import Sampling
from edm2lite.sampling.solvers import Denoise, Noise, Stepwise

Pictures = ImageDataset | Tensor
"""Images as a data set of pixels, or uint8 [M, C, H, W]."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What the images of a generator begin with, and which part of them is made.

    Seed s begins with image s mod M. The noise is that of the seed, so that ``strength=1`` without
    a mask is generation as ever, bit for bit, and ``strength=0`` gives the images back, as the
    encoder of the model sees them.

    Attributes:
        images: The images to begin with, uint8, of the size that the model makes.
        strength: Share of the steps that are taken, in [0, 1], to the nearest step. The run begins
            at the level where the first of them does, with the image plus noise of that level; at
            1 with noise alone.
        sigma: Noise level to begin at, in place of ``strength``.
        mask: Which pixels are filled in: those where it is at least 128, [M or 1, 1 or 3, H, W]
            uint8, mask s mod M for seed s. All others end exactly as they are in the image. None
            for all.
        resample: Number of times that each step is taken, with fresh noise in between. A solver
            that remembers earlier steps (``dpmpp_2m``) begins anew every time.

    Raises:
        ValueError: If a value is out of range, both ``strength`` and ``sigma`` are given, or images
            are not uint8.

    Example:
        >>> edit = Edit(images=torch.zeros(1, 1, 8, 8, dtype=torch.uint8), strength=0.5)
        >>> edit.start(Sampling(sigmas=(8.0, 4.0, 2.0, 1.0)).levels())
        (2, tensor([2., 1., 0.], dtype=torch.float64))
    """

    images: Pictures = field(repr=False)
    strength: float | None = None
    sigma: float | None = None
    mask: Pictures | None = field(repr=False, default=None)
    resample: int = 1

    def __post_init__(self) -> None:
        if self.strength is not None and self.sigma is not None:
            raise ValueError("give either strength or sigma to begin at, not both")
        if not 0 <= (1.0 if self.strength is None else self.strength) <= 1:
            raise ValueError(f"strength must be from 0 to 1, got {self.strength:g}")
        if self.sigma is not None and not 0 < self.sigma < math.inf:
            raise ValueError(f"sigma to begin at must be positive and finite, got {self.sigma:g}")
        if self.resample < 1:
            raise ValueError(f"resample must be at least 1, got {self.resample}")
        object.__setattr__(self, "images", as_dataset(self.images, "images to begin with"))
        if self.mask is not None:
            object.__setattr__(self, "mask", as_dataset(self.mask, "masks"))

    def start(self, levels: Tensor) -> tuple[int, Tensor]:
        """The number of steps that are left out, and the levels of the others.

        Args:
            levels: [N + 1] noise levels of a whole run.

        Raises:
            ValueError: If ``sigma`` is above the first level.
        """
        if self.sigma is None:
            strength = 1.0 if self.strength is None else self.strength
            first = math.floor((1 - strength) * (len(levels) - 1) + 0.5)
            return first, levels[first:]
        if self.sigma > float(levels[0]):
            raise ValueError(
                f"sigma to begin at must be at most {float(levels[0]):g}, the first noise level,"
                f" got {self.sigma:g}"
            )
        return int((levels >= self.sigma).sum()) - 1, sigmas_from(levels, self.sigma)

    def check(self, encoder: Encoder, sampling: Sampling, shape: tuple[int, int, int]) -> None:
        """Raise ValueError, with the reason, unless a model can begin with these images.

        Args:
            encoder: Encoder of the model.
            sampling: Sampler settings.
            shape: (C, H, W) of what the network works on.
        """
        self.start(sampling.levels())
        if self.resample > 1 and sampling.S_churn:
            raise ValueError(
                "resample repeats steps with noise of its own and takes no S_churn; leave one out"
            )
        picture = self._images.images([0])
        size = "x".join(map(str, picture.shape[1:]))
        channels = encoder.image_channels(shape[0])
        if picture.shape[1] not in (1, channels):
            raise ValueError(
                f"images to begin with must have {channels} channel(s) for this model,"
                f" {self._images.title(0)} of {self._images.name} is {size}; convert it by edm2lite"
                " dataset convert"
            )
        found = tuple(encoder.encode_images(self.pictures([0], channels)).shape[1:])
        if found != shape:
            raise ValueError(
                f"images to begin with must become {'x'.join(map(str, shape))} for the network,"
                f" {self._images.title(0)} of {self._images.name}, {size}, becomes"
                f" {'x'.join(map(str, found))}; bring it to the size by edm2lite dataset convert"
            )
        if self._masks is not None:
            mask = self._masks.images([0])
            if mask.shape[2:] != picture.shape[2:]:
                raise ValueError(
                    f"masks must be of the size of the images, {size.partition('x')[2]}, got"
                    f" {mask.shape[2]}x{mask.shape[3]}"
                )

    def solve(
        self,
        seeds: Sequence[int],
        encoder: Encoder,
        sampling: Sampling,
        denoise: Denoise | Stepwise,
        noise: Noise,
    ) -> Tensor:
        """Images of these seeds in the space of the denoiser, [N, C, H, W].

        Args:
            seeds: Seeds of the images.
            encoder: Encoder of the model.
            sampling: Sampler settings.
            denoise: The denoiser.
            noise: Source of noise [N, C, H, W]; the first draw is that which generation begins
                with.
        """
        first, levels = self.start(sampling.levels())
        drawn = noise()
        x = first_state(drawn, levels).to(drawn.dtype)
        channels = encoder.image_channels(x.shape[1])
        known = encoder.encode_images(self.pictures(seeds, channels).to(x.device)).to(x.dtype)
        begins_at_image = first > 0 or self.sigma is not None
        if self._masks is not None:
            mask = coarse_mask(self.filled(seeds), known.shape[2:]).to(x)
            denoise = Inpaint(denoise, known, mask)
            if not begins_at_image and math.isfinite(float(levels[0])):
                x = x + known * (1 - mask)
        if begins_at_image:
            x = x + known
        if len(levels) < 2:
            return x
        later = LaterSteps(denoise, first)
        return sampling.solve(later, x, noise, levels=levels, resample=self.resample)

    def finished(self, seeds: Sequence[int], images: Tensor) -> Tensor:
        """Generated images with the known pixels put back exactly, uint8 on the CPU.

        Args:
            seeds: Seeds of the images.
            images: [N, C, H, W] uint8 on the CPU.
        """
        if self._masks is None:
            return images
        return torch.where(self.filled(seeds), images, self.pictures(seeds, images.shape[1]))

    def pictures(self, seeds: Sequence[int], channels: int) -> Tensor:
        """The image that each seed begins with, [N, channels, H, W] uint8; gray in equal channels.

        Args:
            seeds: Seeds of the images.
            channels: Number of channels of the images of the model.
        """
        images = self._images.images([seed % len(self._images) for seed in seeds])
        return torch.from_numpy(images).expand(-1, channels, -1, -1)

    def filled(self, seeds: Sequence[int]) -> Tensor:
        """Where the image of each seed is filled in, [N, 1, H, W] bool.

        Args:
            seeds: Seeds of the images.
        """
        assert self._masks is not None
        masks = self._masks.images([seed % len(self._masks) for seed in seeds])
        return torch.from_numpy(masks >= 128).any(dim=1, keepdim=True)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What decides the images besides the sampler, as JSON can hold it."""
        values = {"strength": self.strength, "from_sigma": self.sigma, "mask": self._masks}
        found: dict[str, Any] = {"init_images": _digest(self._images)}
        found |= {name: value for name, value in values.items() if value is not None}
        if self._masks is not None:
            found["mask"] = _digest(self._masks)
        return found | ({"resample": self.resample} if self.resample > 1 else {})

    @property
    def _images(self) -> ImageDataset:
        assert isinstance(self.images, ImageDataset)  # set at construction
        return self.images

    @property
    def _masks(self) -> ImageDataset | None:
        assert self.mask is None or isinstance(self.mask, ImageDataset)
        return self.mask


def open_pictures(place: str | Path) -> ImageDataset:
    """An image file as a data set of one image; anything else as ``open_dataset`` opens it.

    Args:
        place: Image file, folder or ZIP.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it is damaged, or holds no images.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (4, 2)).save(folder + "/a.png")
        ...     open_pictures(folder + "/a.png").image_shape
        (3, 2, 4)
    """
    path = Path(place)
    if not (path.is_file() and path.name.lower().endswith(SUFFIXES)):
        return open_dataset(path)
    pixels = decode_image(path.read_bytes(), path.name, str(path.parent))
    return ImageDataset(str(path), 1, _shape(pixels), lambda index: pixels, names=[path.name])


def as_dataset(pictures: Pictures, what: str) -> ImageDataset:
    """Images as a data set of pixels.

    Args:
        pictures: The images.
        what: Noun for messages.

    Raises:
        ValueError: If they are latents, or a tensor of another form.

    Example:
        >>> len(as_dataset(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), "masks"))
        3
    """
    if isinstance(pictures, ImageDataset):
        if pictures.encoder is not None:
            raise ValueError(f"{what} must be pixels, {pictures.name} holds latents")
        return pictures
    if pictures.ndim != 4 or pictures.dtype != torch.uint8 or not len(pictures):
        raise ValueError(
            f"{what} must be uint8 [M, C, H, W], got {list(pictures.shape)} {pictures.dtype}"
        )
    array = pictures.cpu().numpy()
    return ImageDataset(what, len(array), _shape(array[0]), lambda index: array[index])


def _shape(pixels: np.ndarray[Any, Any]) -> tuple[int, int, int]:
    channels, height, width = pixels.shape
    return channels, height, width


def _digest(dataset: ImageDataset) -> str:
    """xxh3-64 of all pixels of a data set, hexadecimal."""
    state = xxhash.xxh3_64()
    for index in range(len(dataset)):
        pixels = np.ascontiguousarray(dataset.images([index]))
        state.update(repr(pixels.shape).encode())
        state.update(pixels.data)
    return state.hexdigest()
