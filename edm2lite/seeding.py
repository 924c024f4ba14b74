"""Random numbers as functions of (seed, index): no state to save, no order to keep.

Whatever is drawn for a sample depends on its seed and its index alone: not on the batch it is in,
on the process that draws it, or on what was drawn before.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Purpose(enum.IntEnum):
    """Keeps streams of one (seed, index) apart; the numbers are part of every result."""

    TRAINING = 0
    ORDER = 1
    GENERATION = 2
    DROPOUT = 3
    AUGMENTATION = 4
    LATENT = 5
    EVALUATION = 6


def rng(seed: int, index: int, purpose: Purpose) -> np.random.Generator:
    """The generator of one sample; counter-based (Philox), so that making one is cheap."""
    return np.random.Generator(np.random.Philox(key=[seed, index], counter=[0, 0, 0, int(purpose)]))


def normals(generators: Sequence[np.random.Generator], shape: Sequence[int]) -> Tensor:
    """[N, *shape] float32 standard normal values, row i from generator i."""
    out = np.empty((len(generators), *shape), dtype=np.float32)
    for row, generator in zip(out.reshape(len(generators), -1), generators, strict=True):
        generator.standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(out)
