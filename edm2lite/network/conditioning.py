"""What a network is told besides x and sigma: one value from the data set to the embedder.

A :class:`Conditioning` holds named tensors with a row per image: the index of a class, a vector,
an image, whatever a user adds. Data sets and samplers make it; batches, loss, guidance and sweeps
move, slice, join and drop it as one object; the embedder of a network alone opens it. What a
network takes, it declares as a tuple of :class:`edm2lite.network.conditions.Condition`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor


class Conditioning:
    """Named tensors, one row per image; what they mean is known to the network alone.

    The null form of a value, which says "not told", is -1 for integers (the index of a class), 0
    for floating-point numbers and False for masks.

    Args:
        values: Name -> tensor [N, ...]; all tensors have the same N.

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
        """A Conditioning of any of these forms: a tensor stands for labels, None for nothing."""
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
        """A copy with the values on a device."""
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
        """The batches one after the other, all of the same names."""
        first, *others = parts
        if any(set(part) != set(first) for part in others):
            raise ValueError(f"batches must be told the same to be joined, got {list(parts)}")
        return Conditioning({name: torch.cat([part[name] for part in parts]) for name in first})

    def unconditional(self) -> Conditioning:
        """The null form of every value, which is what a network sees that is told nothing."""
        return Conditioning({name: _null(v) for name, v in self.values.items()})

    def drop_(self, row: int, names: Collection[str] | None = None) -> None:
        """Replace one row by its null form, in place: label dropout.

        Args:
            row: Index of the row.
            names: Names of the values; all of them by default.

        Example:
            >>> told = Conditioning({"label": torch.tensor([3]), "ink": torch.ones(1, 1)})
            >>> told.drop_(0, ["label"])
            >>> told["label"].item(), told["ink"].item()
            (-1, 1.0)
        """
        for name, value in self.values.items():
            if names is None or name in names:
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
