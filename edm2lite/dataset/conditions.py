"""What a data set knows about its images besides the pixels: a condition, and its value per image.

Labels are one condition; condition images on disk and whatever a user computes are others. A batch
of values becomes a :class:`edm2lite.network.conditioning.Conditioning` in
:meth:`edm2lite.dataset.ImageDataset.conditioning`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from edm2lite.network.conditions import Condition

_DTYPES: dict[str, type] = {"f": np.float32, "i": np.int64, "u": np.int64, "b": np.bool_}


@dataclass(frozen=True)
class Normalization:
    """``(v - mean) / std`` of a stored value v in 0..255, the same for all channels.

    ``edm2lite dataset convert`` measures mean and std over the whole data set, so that values have
    mean 0 and variance 1, and stores them in ``dataset.json`` under ``condition_normalization``.
    The defaults hold where nothing is stored. They map 0..255 to -2..2, which has unit variance for
    images of the contrast that sigma_data = 0.5 stands for.

    Attributes:
        mean: Stored value that becomes 0.
        std: Difference of stored values that becomes 1.

    Raises:
        ValueError: If ``std`` is not positive, or a value is not finite.

    Example:
        >>> import numpy as np
        >>> Normalization()(np.array([0, 255], np.uint8)).tolist()
        [-2.0, 2.0]
    """

    mean: float = 127.5
    std: float = 63.75

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ValueError(
                "condition images must be normalized by a finite mean and a positive std, got"
                f" {self.mean} and {self.std}"
            )

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Stored values of any shape, normalized."""
        values: NDArray[np.float32] = pixels.astype(np.float32)
        values -= np.float32(self.mean)
        values /= np.float32(self.std)
        return values


@dataclass(frozen=True)
class DatasetCondition:
    """A condition, with its value for every image of a data set.

    Attributes:
        condition: Kind and shape of the values. A network can be trained on the data set if the
            condition it declares is equal to this one.
        values: Array [N, ...] with a row per image, or a function from the index of an image to its
            value (an array without a batch dimension). The function depends on the index alone, and
            may be called from several threads at once.
        is_random: Whether the value of an image depends on a draw too, as that of one of its
            captions does. ``values`` is then a function from the index and a number in [0, 1).
        picture: Function from the index of an image to pixels that show its condition to a person,
            uint8 [1 or 3, H, W]. Without it, a condition image is drawn from its values.
        normalization: What makes values of these pixels, if that is a normalization.

    Example:
        >>> from edm2lite.network.conditions import Vector
        >>> corners = DatasetCondition(Vector("corner", 2), lambda i: [i / 4, 1.0])
        >>> corners.rows([0, 2])
        tensor([[0.0000, 1.0000],
                [0.5000, 1.0000]])
    """

    condition: Condition
    values: NDArray[Any] | Callable[..., ArrayLike] = field(repr=False)
    picture: Callable[[int], NDArray[np.uint8]] | None = field(repr=False, default=None)
    is_random: bool = False
    normalization: Normalization | None = None

    @property
    def name(self) -> str:
        """Key of the condition in a Conditioning."""
        return self.condition.name

    def rows(
        self,
        indices: Sequence[int] | NDArray[np.int64],
        draws: Sequence[float] | NDArray[np.float64] | None = None,
    ) -> Tensor:
        """Values of several images, [N, ...] float32, int64 or bool, in memory of their own.

        Args:
            indices: Indices of the images.
            draws: Number in [0, 1) for each of them, on which random values depend. [default: 0]

        Raises:
            ValueError: If the values differ in shape, or are integers where the network takes
                floating-point numbers.
        """
        if isinstance(self.values, np.ndarray):
            array = self.values[np.asarray(indices, np.int64)]
        else:
            given = zip(indices, np.zeros(len(indices)) if draws is None else draws, strict=True)
            calls = [(int(i), float(draw)) if self.is_random else (int(i),) for i, draw in given]
            array = self._stacked([np.asarray(self.values(*call)) for call in calls], indices)
        is_float = array.dtype.kind == "f"
        if not is_float and self.condition.example(1, 1, 1).is_floating_point():
            raise ValueError(
                f"{self.name} must be floating-point numbers of about unit variance, got"
                f" {array.dtype}"
            )
        dtype = _DTYPES.get(array.dtype.kind)
        if dtype is None:
            raise ValueError(f"{self.name} must be numbers or booleans, got {array.dtype}")
        return torch.from_numpy(array.astype(dtype, copy=False))

    def drawn(self, index: int) -> NDArray[np.uint8] | None:
        """Pixels that show the condition of one image, [1 or 3, H, W]; None if it is no image."""
        if self.picture is not None:
            return self.picture(index)
        value = self.rows([index])[0]
        return false_colors(value) if value.ndim == 3 else None

    def _stacked(
        self, values: list[NDArray[Any]], indices: Sequence[int] | NDArray[np.int64]
    ) -> NDArray[Any]:
        for index, value in zip(indices, values, strict=True):
            if value.shape != values[0].shape:
                raise ValueError(
                    f"{self.name} must be of one shape for all images of a batch, got"
                    f" {list(values[0].shape)} for image {indices[0]} and {list(value.shape)} for"
                    f" image {index}"
                )
        return np.stack(values)


def false_colors(x: Tensor, std: float = 1.0) -> NDArray[np.uint8]:
    """The first three channels (or the first) of [C, H, W], from -2 std in black to 2 std in white.

    Example:
        >>> import torch
        >>> false_colors(torch.tensor([-2.0, 0.0, 2.0]).reshape(1, 1, 3)).tolist()
        [[[0, 127, 255]]]
    """
    shown = x[:3] if len(x) >= 3 else x[:1]
    return ((shown / (4 * std) + 0.5).clamp(0, 1) * 255).to(torch.uint8).numpy()
