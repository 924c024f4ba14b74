"""Aspect-ratio buckets: the sizes that images of any shape are brought to.

After the NovelAI report: for each width the largest height whose area stays within a limit, the
same with the sides swapped, and the square.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_ERROR = 0.25
"""Images further than this from every bucket, in |ln aspect ratio|, are left out: at most 22 % of
such an image would have been cut off."""


@dataclass(frozen=True)
class Buckets:
    """Sizes (height, width).

    Attributes:
        sizes: [B, 2] int64, sorted by aspect ratio.
    """

    sizes: NDArray[np.int64]

    @classmethod
    def of(cls, resolution: int, step: int | None = None) -> Buckets:
        """Buckets around a square resolution R: sides R/2 to 2R, area at most 1.5 R**2.

        For R = 512 and steps of 64 these are the published ones.

        Args:
            resolution: R.
            step: Sides are multiples of it; R/8 if not given.

        Raises:
            ValueError: R/2 is no multiple of the step.
        """
        step = resolution // 8 if step is None else step
        if step < 1 or resolution % (2 * step):
            raise ValueError(
                f"half the resolution must be a multiple of the bucket step, got {resolution} and"
                f" {step}"
            )
        found = {(resolution, resolution)}
        for width in range(resolution // 2, 2 * resolution + 1, step):
            height = min(2 * resolution, 3 * resolution**2 // (2 * width)) // step * step
            found |= {(height, width), (width, height)}
        ordered = sorted(found, key=lambda size: (size[1] / size[0], size[0]))
        return cls(np.array(ordered, dtype=np.int64))

    def assign(self, sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The bucket of each image [N, 2], and its error |ln(aspect / bucket's aspect)|."""
        aspects = np.log(self.sizes[:, 1] / self.sizes[:, 0])
        errors = np.abs(np.log(sizes[:, 1] / sizes[:, 0])[:, None] - aspects)
        nearest = errors.argmin(1)
        return nearest, errors[np.arange(len(sizes)), nearest]
