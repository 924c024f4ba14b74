"""Magnitudes of the network while it trains: lines of ``magnitudes.jsonl``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from edm2lite.diffusion.objective import noised
from edm2lite.diffusion.precond import Precond
from edm2lite.jsonlines import append_line
from edm2lite.network.magnitudes import (
    Magnitude,
    Meter,
    by_bucket,
    copies,
    relative_updates,
    to_record,
)

from .data import LossInputs
from .hook import Hook
from .sinks import keep_until

if TYPE_CHECKING:
    from .trainer import Trainer


class Magnitudes(Hook):
    """Measures activations, weights and updates of a step, layer by layer.

    Activations are those of an extra pass over what this process saw last, without gradients and
    not compiled. Updates are the change of the weights over the whole step, forced weight
    normalization included.
    """

    at_end: ClassVar[bool] = False

    def start(self, trainer: Trainer) -> None:
        """Drop the lines that an interrupted run will write again."""
        self._before: dict[str, Tensor] = {}
        self._latest: dict[str, dict[str, float]] = {}
        if self.every and trainer.is_main:
            keep_until(trainer.run_dir / "magnitudes.jsonl", trainer.nimg)

    def before_step(self, trainer: Trainer) -> None:
        """Copy the weights."""
        self._before = copies(trainer.net)

    def run(self, trainer: Trainer) -> None:
        """Measure the step that has just been taken; rank 0 writes a line."""
        updates = relative_updates(trainer.net, self._before)
        self._before = {}
        assert trainer.last_inputs is not None
        found = _measure(trainer.net, trainer.last_inputs, updates)
        self._latest = by_bucket(found)
        if trainer.is_main:
            append_line(trainer.run_dir / "magnitudes.jsonl", to_record(trainer.nimg, found))

    def status(self) -> Mapping[str, Any]:
        """Mean activation of the blocks by bucket, as measured last."""
        if not self._latest:
            return {}
        return {"activation": {name: group["mean"] for name, group in self._latest.items()}}


@torch.no_grad()
def _activations(net: Precond, inputs: LossInputs, updates: dict[str, float]) -> list[Magnitude]:
    with Meter(net) as meter:
        net(noised(inputs.images, inputs.sigma, inputs.noise), inputs.sigma, inputs.conditioning)
    return meter.magnitudes(updates)


_not_compiled: Any = torch.compiler.disable
_measure: Callable[..., list[Magnitude]] = _not_compiled(_activations)
