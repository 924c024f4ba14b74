"""Pixels as patches: a network works on a grid of lower resolution with more channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from edm2lite.models.encoders import Encoder, PixelEncoder


@dataclass(frozen=True, kw_only=True)
class PatchEncoder(Encoder):
    """Shifted and scaled pixels, those of each square patch as the channels of one place.

    An image [C, H, W] becomes [C p^2, H/p, W/p], ``x[(c p + i) p + j, y, z] = image[c, y p + i,
    z p + j]``. Nothing is lost, and a network has p^2 times fewer places to compute.

    Attributes:
        kind: ``patches``.
        shift: Pixel value that becomes 0.
        scale: Difference of pixel values that becomes 1.
        patch_size: Side p of a patch in pixels.

    Example:
        >>> import torch
        >>> encoder = PatchEncoder()
        >>> images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
        >>> x = encoder.encode(images)
        >>> x.shape, encoder.decode(x).equal(images)
        (torch.Size([4, 12, 16, 16]), True)
    """

    kind: Literal["patches"] = "patches"
    shift: float = 127.5
    scale: float = 127.5
    patch_size: int = 2

    def __post_init__(self) -> None:
        _ = self._pixels  # checks the scale
        if self.patch_size < 1:
            raise ValueError(f"encoder.patch_size must be at least 1, got {self.patch_size}")

    def shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """See :meth:`Encoder.shape`."""
        (channels, height, width), side = image_shape, self.patch_size
        if height % side or width % side:
            raise ValueError(
                f"sides of images must be multiples of encoder.patch_size = {side}, got"
                f" {height} x {width}"
            )
        return channels * side**2, height // side, width // side

    def encode(self, raw: Tensor, noise: Tensor | None = None) -> Tensor:
        """uint8 [N, C, H, W] -> float32 [N, C p^2, H/p, W/p]; ``noise`` is not used."""
        return pixel_unshuffle(self._pixels.encode(raw), self.patch_size)

    def decode(self, x: Tensor) -> Tensor:
        """Float [N, C p^2, H/p, W/p] -> uint8 [N, C, H, W], rounded to nearest and clipped."""
        return self._pixels.decode(pixel_shuffle(x, self.patch_size))

    def image_channels(self, channels: int) -> int:
        """See :meth:`Encoder.image_channels`."""
        return channels // self.patch_size**2

    @property
    def _pixels(self) -> PixelEncoder:
        return PixelEncoder(shift=self.shift, scale=self.scale)
