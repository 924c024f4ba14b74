"""Between uint8 images and the space that the denoiser works in (standard deviation sigma_data)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PixelEncoder:
    """Pixels, shifted and scaled: ``x = (image - shift) / scale``.

    The defaults map 0..255 to -1..1. For a data set of other contrast, shift by its mean and scale
    by its standard deviation / sigma_data.
    """

    shift: float = 127.5
    scale: float = 127.5

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"encoder.scale must be positive, got {self.scale}")

    def encode(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> float32."""
        return (images.float() - self.shift) / self.scale

    def decode(self, x: Tensor) -> Tensor:
        """float [N, C, H, W] -> uint8, rounded to nearest and clipped."""
        return (x.float() * self.scale + self.shift + 0.5).clamp(0, 255).to(torch.uint8)

    def to_json(self) -> str:
        """Description that travels in every model file."""
        return json.dumps({"kind": "pixels", **dataclasses.asdict(self)}, separators=(",", ":"))


def encoder_from_json(text: str) -> PixelEncoder:
    """The encoder described in a model file.

    Raises:
        ValueError: A kind or a setting that this version does not know.
    """
    values = json.loads(text)
    kind = values.pop("kind", None)
    if kind != "pixels":
        raise ValueError(f"encoder kind must be 'pixels', got {kind!r}; it needs a newer version")
    try:
        return PixelEncoder(**values)
    except TypeError as error:
        raise ValueError(f"encoder description must be one this version knows: {error}") from error
