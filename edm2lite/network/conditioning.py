"""What a network is told besides x and sigma: one value from the data set to the embedder.

A :class:`Conditioning` holds named tensors with a row per image: the index of a class, a vector,
an image, whatever a user adds. Data sets and samplers make it; batches, loss, guidance and sweeps
move, slice, join and drop it as one object; the embedder of a network alone opens it. What a
network takes, it declares as a tuple of :class:`Condition`.
"""

from __future__ import annotations

import abc
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from edm2lite.seeding import Purpose, rng


class Conditioning:
    """Named tensors, one row per image; the names and meanings are those of the network.

    The null form of a value, which says "not told", is -1 for integers (the index of a class), 0
    for floating-point numbers and False for masks.

    Args:
        values: Name -> [N, ...]; every tensor has the same N.

    Example:
        >>> told = Conditioning({"label": torch.tensor([3, 7])})
        >>> told.unconditional()["label"]
        tensor([-1, -1])
        >>> Conditioning.cat([told, told.rows([0])])["label"]
        tensor([3, 7, 3])
    """

    def __init__(self, values: Mapping[str, Tensor] | None = None):
        self.values: dict[str, Tensor] = dict(values or {})

    @staticmethod
    def of(value: Conditioning | Mapping[str, Tensor] | Tensor | None) -> Conditioning:
        """The same value as a Conditioning: a tensor stands for labels, None for nothing."""
        if isinstance(value, Conditioning):
            return value
        if isinstance(value, Tensor):
            return Conditioning({"label": value})
        return Conditioning(value)

    def __bool__(self) -> bool:
        return bool(self.values)

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def __contains__(self, name: object) -> bool:
        return name in self.values

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {list(v.shape)}" for name, v in self.values.items())
        return f"Conditioning({shapes})"

    def get(self, name: str) -> Tensor | None:
        """The value of that name, or None if there is none."""
        return self.values.get(name)

    def only(self, names: Collection[str]) -> Conditioning:
        """The values of these names; others are left out, missing ones stay missing."""
        return Conditioning({name: v for name, v in self.values.items() if name in names})

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Conditioning:
        """The same values on a device."""
        return Conditioning(
            {name: v.to(device, non_blocking=non_blocking) for name, v in self.values.items()}
        )

    def rows(self, index: slice | Sequence[int] | Tensor) -> Conditioning:
        """The conditioning of some of the images."""
        if not isinstance(index, slice | Tensor):
            index = torch.tensor(index, dtype=torch.int64)
        return Conditioning({name: v[index] for name, v in self.values.items()})

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """One batch after the other; all must hold the same names."""
        first, *others = parts
        if any(set(part) != set(first) for part in others):
            raise ValueError(f"batches must be told the same to be joined, got {list(parts)}")
        return Conditioning({name: torch.cat([part[name] for part in parts]) for name in first})

    def unconditional(self) -> Conditioning:
        """The null form, as a network sees it that is not told anything."""
        return Conditioning({name: _null(v) for name, v in self.values.items()})

    def drop_(self, row: int) -> None:
        """Replace one row by its null form, in place: label dropout."""
        for value in self.values.values():
            value[row] = _null(value[row])

    def flip_(self, row: int) -> None:
        """Mirror one row left to right, in place, where its image is mirrored.

        Condition images, [N, C, H, W], are mirrored; values of other shapes stay as they are.

        Example:
            >>> told = Conditioning({"image": torch.arange(4.0).reshape(2, 1, 1, 2)})
            >>> told.flip_(1)
            >>> told["image"].flatten().tolist()
            [0.0, 1.0, 3.0, 2.0]
        """
        for value in self.values.values():
            if value.ndim == 4:
                value[row] = value[row].flip(-1)


def _null(value: Tensor) -> Tensor:
    is_index = not (value.is_floating_point() or value.dtype == torch.bool)
    return torch.full_like(value, -1) if is_index else torch.zeros_like(value)


class Condition(abc.ABC):
    """One kind of value that a network takes; a frozen dataclass says what it must look like.

    Data set and network agree on a condition if theirs are equal.
    """

    name: str
    """Key in a :class:`Conditioning`."""

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
        """What it is, for people: ``"10 classes"``."""

    def drawn(self, seeds: Sequence[int]) -> Tensor | None:
        """A random value for each seed, a function of the seed alone; None if it has to be given.

        Generation uses it where nothing is asked for.
        """
        return None

    def in_turn(self, indices: Sequence[int]) -> Tensor | None:
        """A value for each index that goes through all there are; None if it has to be given.

        Sample grids and metrics use it, so that every value comes up equally often.
        """
        return None


@dataclass(frozen=True)
class ClassLabel(Condition):
    """The index of a class, [N] integers with -1 for none, or vectors [N, num_classes].

    Vectors have L2 norm 1, as the one-hot vector of a class has, or 0 for none.

    Attributes:
        num_classes: Number of classes, or length of the vectors.
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
        """A class for each seed, uniform."""
        return torch.tensor(
            [int(rng(s, 1, Purpose.GENERATION).integers(self.num_classes)) for s in seeds],
            dtype=torch.int64,
        )

    def in_turn(self, indices: Sequence[int]) -> Tensor:
        """One class after the other."""
        return torch.tensor([i % self.num_classes for i in indices], dtype=torch.int64)


@dataclass(frozen=True)
class ConditionImage(Condition):
    """An image beside the noisy one, [N, channels, H, W] noise-free and of unit variance.

    Attributes:
        channels: Number of its channels.
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
        name: Key in a :class:`Conditioning`.
        length: Length of the vector.
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


def check_conditioning(told: Conditioning, conditions: Sequence[Condition], images: Tensor) -> None:
    """Raise ValueError unless a network of these conditions can be told that about the images."""
    known = {c.name: c for c in conditions}
    for name in told:
        if name not in known:
            takes = ", ".join(known) or "nothing"
            raise ValueError(f"this network takes {takes} besides x and sigma, got {name}")
        known[name].check(told[name], images)
    for condition in conditions:
        if condition.is_required and condition.name not in told:
            raise ValueError(
                f"{condition.name} must be given: the network needs {condition.describe()}"
            )


def examples(conditions: Sequence[Condition], num: int, height: int, width: int) -> Conditioning:
    """Everything that a network takes, of the right shapes, for counting and measuring."""
    return Conditioning({c.name: c.example(num, height, width) for c in conditions})


def values_of(conditions: Sequence[Condition], method: str, numbers: Sequence[int]) -> Conditioning:
    """``drawn`` or ``in_turn`` of all conditions that have it.

    Args:
        conditions: What the network takes.
        method: ``"drawn"`` with seeds, or ``"in_turn"`` with indices.
        numbers: The seeds or indices.

    Raises:
        ValueError: If the network cannot go without a condition that has to be given.
    """
    values: dict[str, Any] = {c.name: getattr(c, method)(numbers) for c in conditions}
    for condition in conditions:
        if condition.is_required and values[condition.name] is None:
            raise ValueError(
                f"{condition.name} must be given, the network needs {condition.describe()};"
                " take conditions from a data set"
            )
    return Conditioning({name: value for name, value in values.items() if value is not None})


def is_readable(values: Tensor) -> bool:
    """Whether a look at the values is free: it would stall a GPU, and break a graph or a vmap."""
    return (
        values.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(values)
    )
