"""The kinds of values that a network can be told: class labels, images, vectors, kinds of a user.

A network declares what it takes as a tuple of :class:`Condition`, a data set what it has; they fit
if their declarations are equal. The values travel in a :class:`Conditioning` under their names.
"""

from __future__ import annotations

import abc
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edm2lite.network.kernels.dispatch import is_readable
from edm2lite.seeding import Purpose, rng


class Condition(abc.ABC):
    """One value that a network takes; a frozen dataclass says what it must look like.

    Data set and network agree on a condition if theirs are equal.

    Example:
        >>> @dataclass(frozen=True)
        ... class Angle(Condition):
        ...     name: str = "angle"
        ...     def check(self, value, images):
        ...         if list(value.shape) != [len(images)]:
        ...             raise ValueError(f"angle must be [{len(images)}], got {list(value.shape)}")
        ...     def example(self, num, height, width):
        ...         return torch.zeros(num)
        ...     def describe(self):
        ...         return "an angle"
        >>> Angle().check(torch.zeros(3), images=torch.zeros(2, 1, 8, 8))
        Traceback (most recent call last):
        ValueError: angle must be [2], got [3]
    """

    name: str
    """Key in a Conditioning."""

    is_required: ClassVar[bool] = False
    """Whether the network cannot go without it; otherwise its absence is its null form."""

    @abc.abstractmethod
    def check(self, value: Tensor, images: Tensor) -> None:
        """Raise ValueError unless ``value`` fits the network and these images [N, C, H, W]."""

    @abc.abstractmethod
    def example(self, num: int, height: int, width: int) -> Tensor:
        """A value of the right shape and type for images of a size, on the default device."""

    @abc.abstractmethod
    def describe(self) -> str:
        """A noun phrase for people, such as ``"10 classes"``."""

    def drawn(self, seeds: Sequence[int]) -> Tensor | None:
        """A random value for each seed, a function of the seed alone; None if it must be given.

        Generation uses it where no value is requested.
        """
        return None

    def in_turn(self, indices: Sequence[int]) -> Tensor | None:
        """A value for each index that cycles through all there are; None if it must be given.

        Sample grids and metrics use it, so that every value comes up equally often.
        """
        return None


@dataclass(frozen=True)
class ClassLabel(Condition):
    """The index of a class, [N] integers with -1 for none, or vectors [N, num_classes].

    Vectors have L2 norm 1, as the one-hot vector of a class has, or 0 for none.

    Attributes:
        num_classes: Number of classes, or length of the vectors.
        name: Key in a Conditioning.

    Example:
        >>> label = ClassLabel(3)
        >>> label.vectors(torch.tensor([2, -1]))
        tensor([[0., 0., 1.],
                [0., 0., 0.]])
        >>> label.in_turn(range(5))
        tensor([0, 1, 2, 0, 1])
    """

    num_classes: int
    name: str = "label"

    def check(self, value: Tensor, images: Tensor) -> None:
        """See :meth:`Condition.check`."""
        if value.ndim == 1 and not value.is_floating_point():
            if is_readable(value):
                self._check_range(value)
        elif value.ndim != 2 or value.shape[1] != self.num_classes:
            raise ValueError(
                f"labels must be [N] class indices or [N, {self.num_classes}] vectors, got"
                f" {list(value.shape)} {value.dtype}"
            )

    def _check_range(self, value: Tensor) -> None:
        low, high = (int(value.min()), int(value.max())) if value.numel() else (0, 0)
        if not -1 <= low <= high < self.num_classes:
            raise ValueError(
                f"class indices must be 0 to {self.num_classes - 1}, or -1 for none, got {low} to"
                f" {high}"
            )

    def vectors(self, value: Tensor) -> Tensor:
        """[N, num_classes] float32: one-hot vectors of indices, 0 for -1; vectors as they are."""
        if value.ndim == 1 and not value.is_floating_point():
            classes = torch.arange(self.num_classes, device=value.device)
            return (value[:, None] == classes).float()
        return value.float()

    def example(self, num: int, height: int, width: int) -> Tensor:
        """See :meth:`Condition.example`."""
        return torch.zeros(num, dtype=torch.int64)

    def describe(self) -> str:
        """See :meth:`Condition.describe`."""
        return f"{self.num_classes} classes"

    def drawn(self, seeds: Sequence[int]) -> Tensor:
        """A class for each seed, uniform over all classes."""
        return torch.tensor(
            [int(rng(s, 1, Purpose.GENERATION).integers(self.num_classes)) for s in seeds],
            dtype=torch.int64,
        )

    def in_turn(self, indices: Sequence[int]) -> Tensor:
        """One class after the other."""
        return torch.tensor([i % self.num_classes for i in indices], dtype=torch.int64)


@dataclass(frozen=True)
class ConditionImage(Condition):
    """An image beside the noisy one, [N, channels, H, W], noise-free and of unit variance.

    Attributes:
        channels: Number of channels.
        name: Key in a Conditioning.

    Example:
        >>> image = ConditionImage(3)
        >>> image.describe(), image.is_required
        ('a condition image of 3 channels', True)
        >>> image.example(num=2, height=8, width=8).shape
        torch.Size([2, 3, 8, 8])
    """

    channels: int
    name: str = "image"

    is_required: ClassVar[bool] = True

    def check(self, value: Tensor, images: Tensor) -> None:
        """See :meth:`Condition.check`."""
        expected = [len(images), self.channels, *images.shape[2:]]
        if list(value.shape) != expected:
            raise ValueError(
                f"the condition image must be {expected} for this network and these images, got"
                f" {list(value.shape)}"
            )

    def example(self, num: int, height: int, width: int) -> Tensor:
        """See :meth:`Condition.example`."""
        return torch.zeros(num, self.channels, height, width)

    def describe(self) -> str:
        """See :meth:`Condition.describe`."""
        return f"a condition image of {self.channels} channels"


@dataclass(frozen=True)
class Vector(Condition):
    """A vector of numbers, [N, length]; the zero vector is its null form.

    Attributes:
        name: Key in a Conditioning.
        length: Length of the vector.

    Example:
        >>> angle = Vector("angle", 2)
        >>> angle.describe()
        'angle, a vector of 2 numbers'
        >>> angle.check(torch.zeros(4, 2), images=torch.zeros(4, 1, 8, 8))
    """

    name: str
    length: int

    def check(self, value: Tensor, images: Tensor) -> None:
        """See :meth:`Condition.check`."""
        if list(value.shape) != [len(images), self.length]:
            raise ValueError(
                f"{self.name} must be [{len(images)}, {self.length}] here, got {list(value.shape)}"
            )

    def example(self, num: int, height: int, width: int) -> Tensor:
        """See :meth:`Condition.example`."""
        return torch.zeros(num, self.length)

    def describe(self) -> str:
        """See :meth:`Condition.describe`."""
        return f"{self.name}, a vector of {self.length} numbers"


@dataclass(frozen=True)
class Tokens(Condition):
    """Tokens of a text, [N, T, length]; a token whose numbers are all 0 is padding.

    T may be any number if what lies beyond ``num_tokens`` is padding. Padding alone is the null
    form, so no mask goes with them.

    Attributes:
        num_tokens: Number of tokens that the network reads.
        length: Length of the vector of a token.
        name: Key in a Conditioning.

    Example:
        >>> tokens = Tokens(77, 768)
        >>> tokens.describe()
        '77 tokens of 768 numbers'
        >>> tokens.check(torch.zeros(4, 100, 768), images=torch.zeros(4, 1, 8, 8))
    """

    num_tokens: int
    length: int
    name: str = "tokens"

    def check(self, value: Tensor, images: Tensor) -> None:
        """See :meth:`Condition.check`."""
        if value.ndim != 3 or (len(value), value.shape[2]) != (len(images), self.length):
            raise ValueError(
                f"{self.name} must be [{len(images)}, T, {self.length}] here, got"
                f" {list(value.shape)}"
            )
        beyond = value[:, self.num_tokens :]
        if beyond.numel() and is_readable(beyond) and beyond.any():
            raise ValueError(
                f"{self.name} must be {self.num_tokens} or fewer for this network, got up to"
                f" {len(value[0])}; cut the text"
            )

    def example(self, num: int, height: int, width: int) -> Tensor:
        """See :meth:`Condition.example`."""
        return torch.zeros(num, self.num_tokens, self.length)

    def describe(self) -> str:
        """See :meth:`Condition.describe`."""
        return f"{self.num_tokens} {self.name} of {self.length} numbers"


def described(conditions: Collection[Condition]) -> str:
    """Conditions in words: ``"10 classes and a condition image of 3 channels"``.

    Example:
        >>> described([ClassLabel(10), Vector("ink", 1)]), described([])
        ('10 classes and ink, a vector of 1 numbers', 'no condition')
    """
    return " and ".join(c.describe() for c in conditions) or "no condition"


def missing(needed: Collection[Condition], offered: Collection[Condition]) -> list[Condition]:
    """Conditions that a network needs and a data set, or another network, does not have.

    Example:
        >>> missing([ClassLabel(10)], [ClassLabel(7)])
        [ClassLabel(num_classes=10, name='label')]
    """
    return [c for c in needed if c not in offered]
