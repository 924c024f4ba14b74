"""Hook: something that happens every so many images of a run, from inside or outside the package.

A hook is a dataclass, whose fields are its options in YAML::

    hooks:
      - {kind: my_hooks:WeightNorm, every: 10Ki}

One of yours is named ``module:Class``; in Python it is handed to the trainer, ``Trainer(config,
run_dir, device, hooks=[WeightNorm(every=10240)])``.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from edm2lite.kinds import Kinds

from .fields import Nimg

if TYPE_CHECKING:
    from edm2lite.dataset import ImageDataset

    from .config import RunConfig
    from .trainer import Trainer

HOOKS: Kinds[type[Hook]] = Kinds(
    "training hook", {"validation": "edm2lite.training.validation:Validation"}
)
"""Hooks that can be added to a run, by ``kind``."""


@dataclass(kw_only=True)
class Hook(abc.ABC):
    """Something that happens every so many images.

    Every process has its own and calls it at the same steps, so a hook may use collective
    operations; files are written where ``trainer.is_main``. A hook finds in the trainer: ``net``,
    ``ema``, ``nimg``, ``config``, ``device``, ``dataset`` and ``run_dir``, and tells what it has
    found by ``report`` and ``show``. What it keeps for itself is lost when a run is interrupted.

    Attributes:
        kind: Name in :data:`HOOKS`, or ``module:Class`` of this class; empty in Python.
        every: Images between two calls, a multiple of the batch size; 0 for none.

    Example:
        >>> from edm2lite.training import Hook
        >>> class WeightNorm(Hook):
        ...     def run(self, trainer):
        ...         squares = [p.square().sum() for p in trainer.net.parameters()]
        ...         trainer.report("weight_norm", sum(squares).sqrt())
        >>> hook = WeightNorm(every=10240)
        >>> [nimg for nimg in range(0, 26000, 2048) if nimg and hook.is_due(nimg, 25600)]
        [10240, 20480]
    """

    kind: str = ""
    every: Nimg = field(metadata={"cadence": True, "minimum": 0})

    kinds: ClassVar[Kinds[type[Hook]]] = HOOKS

    at_end: ClassVar[bool] = True
    """Whether it also happens at the end of the run, wherever that is."""

    @abc.abstractmethod
    def run(self, trainer: Trainer) -> None:
        """Called after the step that brings ``trainer.nimg`` to a multiple of ``every``.

        Weights and averages are those after the step, and must be left as they are. Nothing is
        recorded for gradients.
        """

    def check(self, config: RunConfig, dataset: ImageDataset) -> None:
        """Called before a run writes anything; raises ValueError if the hook cannot be part of it.

        Args:
            config: Configuration of the run.
            dataset: Training data.
        """
        return

    def start(self, trainer: Trainer) -> None:
        """Called once, before the first step of this process."""
        return

    def before_step(self, trainer: Trainer) -> None:
        """Called before a step after which :meth:`run` will be due."""
        return

    def finish(self, trainer: Trainer) -> None:
        """Called once, after the last step; not if the run fails."""
        return

    def status(self) -> Mapping[str, Any]:
        """Values to repeat in every status line, in the form that ``trainer.report`` takes."""
        return {}

    def is_needed(self, trainer: Trainer) -> bool:
        """Whether it runs after this step although it is not due."""
        return False

    def is_due(self, nimg: int, total_nimg: int) -> bool:
        """Whether it runs after the step that ends at ``nimg`` images, in a run of a length."""
        if not self.every:
            return False
        return nimg % self.every == 0 or (self.at_end and nimg >= total_nimg)
