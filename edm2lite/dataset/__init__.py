"""Labelled images, as pixels or latents: converted, encoded, checked, and read at random."""

from .base import ImageDataset
from .opening import open_dataset

__all__ = ["ImageDataset", "open_dataset"]
