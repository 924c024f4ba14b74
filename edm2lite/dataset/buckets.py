"""Aspect-ratio buckets: the sizes that images of any shape are brought to.

After the NovelAI report: for each width the largest height whose area stays within a limit, the
same with the sides swapped, and the square.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_ERROR = 0.25
"""Largest distance |ln aspect ratio| of an image from its bucket. Images beyond it are left out;
within it, at most 22 % of an image is cut off."""


@dataclass(frozen=True)
class Buckets:
    """Sizes that images are brought to.

    Attributes:
        sizes: [B, 2] int64 heights and widths, sorted by aspect ratio (width / height).

    Example:
        >>> buckets = Buckets.of(64, step=32)
        >>> buckets.sizes.tolist()
        [[128, 32], [96, 64], [64, 64], [64, 96], [32, 128]]
        >>> nearest, errors = buckets.assign(np.array([[300, 300], [200, 310]]))
        >>> buckets.sizes[nearest].tolist()
        [[64, 64], [64, 96]]
    """

    sizes: NDArray[np.int64]

    @classmethod
    def of(cls, resolution: int, step: int | None = None) -> Buckets:
        """Buckets around a square of side R: sides R/2 to 2R, area at most 1.5 R**2.

        For R = 512 and steps of 64 these are the published ones.

        Args:
            resolution: R.
            step: Number that all sides are multiples of; R/8 if not given.

        Raises:
            ValueError: If R/2 is not a multiple of the step.
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
        """The nearest bucket of each image, and its error.

        Args:
            sizes: [N, 2] heights and widths of the images.

        Returns:
            [N] index of the bucket in :attr:`sizes`, and [N] |ln(aspect / bucket's aspect)|.
        """
        aspects = np.log(self.sizes[:, 1] / self.sizes[:, 0])
        errors = np.abs(np.log(sizes[:, 1] / sizes[:, 0])[:, None] - aspects)
        nearest = errors.argmin(1)
        return nearest, errors[np.arange(len(sizes)), nearest]
