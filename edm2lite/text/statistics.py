"""Statistics of captions: which of them count, mean and deviation per channel."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from edm2lite.text.model import plain, text_digest

MEASURED = 8192
"""Number of captions, those of the lowest digests, over which statistics are taken."""

_DIGITS = 6  # of statistics
_NARROW = 1e-5  # a channel varies if its deviation is above this share of its RMS


def distinct(texts: Iterable[str]) -> list[str]:
    """The texts that are not empty, each once, in the order of their digests.

    Example:
        >>> distinct(["cat", "", "dog", "cat"])
        ['cat', 'dog']
    """
    return sorted({plain(text) for text in texts if text.strip()}, key=text_digest)


class Moments:
    """Sums over rows in float64, from which mean and deviation per channel follow.

    Example:
        >>> moments = Moments()
        >>> moments.add(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        >>> moments.statistics()
        ((2.0, 5.0), (1.0, 1.0))
    """

    def __init__(self) -> None:
        self._count, self._sum, self._squares = 0, torch.zeros(1), torch.zeros(1)

    def add(self, rows: Tensor) -> None:
        """Add rows [n, channels]."""
        rows = rows.double()
        self._count += len(rows)
        self._sum = self._sum + rows.sum(0)
        self._squares = self._squares + rows.square().sum(0)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel; that of a constant channel is 1."""
        mean, square = self._sum / max(1, self._count), self._squares / max(1, self._count)
        std = (square - mean.square()).clamp_min(0).sqrt()
        varies = std > _NARROW * square.sqrt()
        if not varies.any():
            raise ValueError(
                "a text encoder must be measured on captions that differ, got"
                f" {'one' if self._count else 'none'}; give the images captions"
            )
        return _rounded(mean), _rounded(torch.where(varies, std, 1.0))


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.{_DIGITS}g}") for value in values.tolist())
