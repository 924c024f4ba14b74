"""What a network is told as a whole: checked, made up to count and measure, drawn for samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from edm2lite.network.conditioning import Conditioning
from edm2lite.network.conditions import Condition, described


def check_conditioning(told: Conditioning, conditions: Sequence[Condition], images: Tensor) -> None:
    """Raise ValueError unless a network with these conditions can be told that about the images.

    Args:
        told: What the network would be told.
        conditions: What the network takes.
        images: [N, C, H, W], of which the shape counts.

    Example:
        >>> import torch
        >>> from edm2lite.network.conditions import ClassLabel
        >>> told = Conditioning({"label": torch.tensor([3, 12])})
        >>> check_conditioning(told, [ClassLabel(10)], torch.zeros(2, 1, 8, 8))
        Traceback (most recent call last):
        ValueError: class indices must be 0 to 9, or -1 for none, got 3 to 12
    """
    known = {c.name: c for c in conditions}
    for name in told:
        if name not in known:
            takes = ", ".join(known) or "nothing"
            raise ValueError(f"this network takes {takes} besides x and sigma, got {name}")
        known[name].check(told[name], images)
    absent = [c for c in conditions if c.is_required and c.name not in told]
    if absent:
        raise ValueError(f"{absent[0].name} must be given: the network needs {described(absent)}")


def examples(conditions: Sequence[Condition], num: int, height: int, width: int) -> Conditioning:
    """A value of the right shape for everything that a network takes, to count and to measure.

    Args:
        conditions: What the network takes.
        num: Number of images.
        height: Height of the images.
        width: Width of the images.

    Example:
        >>> from edm2lite.network.conditions import ClassLabel, ConditionImage
        >>> examples([ClassLabel(10), ConditionImage(3)], num=2, height=8, width=8)
        Conditioning(label: [2], image: [2, 3, 8, 8])
    """
    return Conditioning({c.name: c.example(num, height, width) for c in conditions})


def values_of(conditions: Sequence[Condition], method: str, numbers: Sequence[int]) -> Conditioning:
    """Values of all conditions that can make some by themselves: at random, or in turn.

    Args:
        conditions: What the network takes.
        method: ``"drawn"`` with seeds, or ``"in_turn"`` with indices.
        numbers: The seeds or indices.

    Raises:
        ValueError: If the network cannot go without a condition that has to be given.

    Example:
        >>> from edm2lite.network.conditions import ClassLabel
        >>> values_of([ClassLabel(3)], "in_turn", range(5))["label"]
        tensor([0, 1, 2, 0, 1])
    """
    values: dict[str, Any] = {c.name: getattr(c, method)(numbers) for c in conditions}
    for condition in conditions:
        if condition.is_required and values[condition.name] is None:
            raise ValueError(
                f"{condition.name} must be given, the network needs {condition.describe()};"
                " take conditions from a data set"
            )
    return Conditioning({name: value for name, value in values.items() if value is not None})
