"""Random numbers as functions of (seed, index): no state to save and no order to keep.

What is drawn for a sample depends only on the seed and the index of that sample: not on the batch
that the sample is in, the process that draws it, or what was drawn before.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Purpose(enum.IntEnum):
    """What random numbers are drawn for; each purpose has its own stream per (seed, index).

    The values are part of every result: changing one changes all samples.

    Example:
        >>> draws = [rng(0, 5, p).random() for p in (Purpose.TRAINING, Purpose.GENERATION)]
        >>> draws[0] == draws[1]
        False
    """

    TRAINING = 0
    ORDER = 1
    GENERATION = 2
    DROPOUT = 3
    AUGMENTATION = 4
    LATENT = 5
    EVALUATION = 6
    CAPTION = 7
    ADAPTER = 8
    PRIOR = 9


def rng(seed: int, index: int, purpose: Purpose) -> np.random.Generator:
    """The random generator of one sample.

    It is counter-based (Philox), so that creating one is cheap.

    Args:
        seed: Seed of the run.
        index: Global index of the sample.
        purpose: What the numbers are for.

    Example:
        >>> generator = rng(seed=0, index=5, purpose=Purpose.GENERATION)
        >>> generator.random() == rng(0, 5, Purpose.GENERATION).random()
        True
    """
    return np.random.Generator(np.random.Philox(key=[seed, index], counter=[0, 0, 0, int(purpose)]))


def normals(generators: Sequence[np.random.Generator], shape: Sequence[int]) -> Tensor:
    """Standard normal values [N, *shape] in float32, row i drawn from generator i.

    Args:
        generators: N generators, which advance.
        shape: Shape of one row.

    Example:
        >>> both = normals([rng(0, i, Purpose.GENERATION) for i in (7, 8)], (3, 16, 16))
        >>> alone = normals([rng(0, 8, Purpose.GENERATION)], (3, 16, 16))
        >>> both.shape, both[1].equal(alone[0])
        (torch.Size([2, 3, 16, 16]), True)
    """
    out = np.empty((len(generators), *shape), dtype=np.float32)
    for row, generator in zip(out.reshape(len(generators), -1), generators, strict=True):
        generator.standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(out)
