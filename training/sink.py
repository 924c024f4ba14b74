"""Sink: a place where the scalars and pictures of a run go, from inside or outside the package.

A sink is a dataclass, whose fields are its options in YAML::

    sinks:
      - {kind: my_sinks:Chat, channel: training}

One of yours is named ``module:Class``; in Python it is handed to the trainer, ``Trainer(config,
run_dir, device, sinks=[Chat(channel="training")])``.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edm2lite.kinds import Kinds

if TYPE_CHECKING:
    from .trainer import Trainer

SINKS: Kinds[type[Sink]] = Kinds(
    "sink",
    {
        "tensorboard": "edm2lite.training.tensorboard:TensorBoard",
        "wandb": "edm2lite.training.wandb_sink:WandB",
    },
)
"""Sinks that can be added to a run, by ``kind``."""


@dataclass(kw_only=True)
class Sink(abc.ABC):
    """A place where the scalars and pictures of a run go. Only the process of rank 0 has sinks.

    Attributes:
        kind: Name in :data:`SINKS`, or ``module:Class`` of this class; empty in Python.

    Example:
        >>> from edm2lite.training import Sink, flat
        >>> class Printer(Sink):
        ...     def scalars(self, line):
        ...         print(line["nimg"], dict(flat(line)))
        >>> Printer().scalars({"nimg": 640, "loss": 0.5, "validation": {"raw": 0.25}})
        640 {'loss': 0.5, 'validation/raw': 0.25}
    """

    kind: str = ""

    kinds: ClassVar[Kinds[type[Sink]]] = SINKS

    @abc.abstractmethod
    def scalars(self, line: Mapping[str, Any]) -> None:
        """Take what is written as a line of ``stats.jsonl``.

        Args:
            line: ``nimg``, the number of images seen, and other values by name: numbers, None, a
                list with a number or None for each of ``ln_sigma``, or mappings of names to such.
                :func:`flat` makes plain numbers of them.
        """

    def check(self) -> None:
        """Called before a run writes anything; raises if the sink cannot be part of it."""
        return

    def start(self, trainer: Trainer) -> None:
        """Called once, before the first step of this process.

        After an interruption ``trainer.nimg`` lies before what was written last, and everything
        since then comes again.
        """
        return

    def advance(self, nimg: int) -> None:
        """Called after every step, at ``nimg`` images."""
        return

    def picture(self, name: str, picture: NDArray[np.uint8], nimg: int) -> None:
        """Take a picture.

        Args:
            name: Name of the series that it belongs to.
            picture: [H, W, C] uint8, C = 1 or 3.
            nimg: Number of images seen.
        """
        return

    def close(self, *, failed: bool) -> None:
        """Called once at the end, also if the run failed."""
        return


def flat(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers in a line of ``stats.jsonl``, each with a name; what is None is left out.

    Example:
        >>> line = {"nimg": 64, "ln_sigma": [-1.0, 0.5], "u_at": [0.1, None], "lr": 0.01}
        >>> list(flat(line))
        [('u_at/ln_sigma -1.00', 0.1), ('lr', 0.01)]
    """
    for name, value in line.items():
        if isinstance(value, list):
            levels = zip(line["ln_sigma"], value, strict=True)
            named = {f"ln_sigma {level:+.2f}": item for level, item in levels}
            yield from _numbers(name, {} if name == "ln_sigma" else named)
        elif name != "nimg":
            yield from _numbers(name, value)


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(f"{name}/{key}", item)
    elif value is not None:
        yield name, value


def plain(value: Any) -> Any:
    """A reported value as JSON can hold it.

    Args:
        value: A number, a tensor of one, or a mapping of names to such values.

    Example:
        >>> plain({"loss": 1, "error": 0.5})
        {'loss': 1, 'error': 0.5}
    """
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    return value if isinstance(value, int) else float(value)
