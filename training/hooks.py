"""The hooks of every run, and the order in which they are called after a step.

==================  ===========================  ===================================================
hook                every                        what it does
==================  ===========================  ===================================================
``Magnitudes``      ``magnitudes_nimg``          a line of ``magnitudes.jsonl``
``Validation``      ``validation.every``         loss on held-out data
those of the user   ``hooks``, ``hooks=[...]``   anything
``Status``          ``status_nimg``              a line of ``stats.jsonl``, with what others report
``Snapshots``       ``snapshot_nimg``            the averages
``Samples``         ``sample_nimg``              grids of generated images, by default some 32
``Checkpoints``     ``checkpoint_nimg``          everything needed to continue
==================  ===========================  ===================================================

Those above ``Status`` may report values, which then are part of its line.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from .config import RunConfig
from .hook import Hook
from .magnitudes import Magnitudes
from .samples import Samples, sample_interval

if TYPE_CHECKING:
    from .trainer import Trainer

logger = logging.getLogger(__name__)


def all_hooks(config: RunConfig, more: Sequence[Hook] = ()) -> list[Hook]:
    """The hooks of a run, in the order in which they are called.

    Those of the configuration are copied, for they may keep something of a run: two runs may share
    a configuration.

    Args:
        config: Configuration of the run.
        more: Further hooks.
    """
    return [
        Magnitudes(every=config.magnitudes_nimg),
        *([] if config.validation is None else [copy.copy(config.validation)]),
        *map(copy.copy, config.hooks),
        *more,
        Status(every=config.status_nimg),
        Snapshots(every=config.snapshot_nimg),
        Samples(
            every=sample_interval(config),
            count=config.sample_count,
            num_steps=config.sample_steps,
        ),
        Checkpoints(every=config.checkpoint_nimg),
    ]


class Status(Hook):
    """Writes a line of statistics to the sinks, and stops a run without finite gradients.

    What other hooks report between two such lines is written at once, as a line of its own.
    """

    def start(self, trainer: Trainer) -> None:
        """Begin the first tick."""
        self._begin_tick(trainer)

    def is_needed(self, trainer: Trainer) -> bool:
        """Whether something was reported, or the run is to stop."""
        return bool(trainer.reported) or self._fatal_steps(trainer) is not None

    def run(self, trainer: Trainer) -> None:
        """Write a line.

        Raises:
            FloatingPointError: If gradients were not finite for ``max_bad_steps`` steps in a row,
                or in all steps of a run that ends here.
        """
        bad_steps = self._fatal_steps(trainer)
        is_tick = self.is_due(trainer.nimg, trainer.config.total_nimg) or bad_steps is not None
        line: dict[str, Any] = {"nimg": trainer.nimg}
        if is_tick:
            line |= {**trainer.statistics.finish_tick(), "lr": trainer.lr()}
            for hook in trainer.hooks:
                line |= hook.status()
        line |= trainer.reported
        trainer.reported.clear()
        if is_tick:
            self._warn_of_bad_steps(trainer, line)
            line |= self._speed(trainer)
            self._begin_tick(trainer)
        for sink in trainer.sinks:
            sink.scalars(line)
        if bad_steps is not None:
            raise FloatingPointError(
                f"gradients must be finite, they were not in {bad_steps}"
                f"{_offending(trainer, line['last_bad_sample'])};"
                " lower optim.ref_lr, or look at that data"
            )

    def _begin_tick(self, trainer: Trainer) -> None:
        self._began_at, self._first = time.perf_counter(), trainer.nimg

    def _fatal_steps(self, trainer: Trainer) -> str | None:
        """Which steps without a finite gradient end the run; None if it goes on.

        Asks a GPU once a tick only.
        """
        config, statistics = trainer.config, trainer.statistics
        is_tick = self.is_due(trainer.nimg, config.total_nimg)
        if trainer.device.type != "cpu" and not is_tick:
            return None
        if statistics.longest_bad_streak() >= config.max_bad_steps:
            return f"{config.max_bad_steps} steps in a row (max_bad_steps)"
        all_bad = statistics.bad_streak() * config.batch_size >= trainer.nimg
        if all_bad and trainer.nimg >= config.total_nimg:
            return f"any step up to nimg = {trainer.nimg}: nothing was learned"
        return None

    def _speed(self, trainer: Trainer) -> dict[str, float]:
        seconds, images = time.perf_counter() - self._began_at, trainer.nimg - self._first
        return {
            "sec_per_kimg": round(1000 * seconds / max(images, 1), 4),
            "img_per_sec": round(images / seconds, 2),
            "mem_gib": round(_peak_memory_gib(trainer.device), 3),
        }

    def _warn_of_bad_steps(self, trainer: Trainer, line: dict[str, Any]) -> None:
        latest = line["last_bad_nimg"]
        if latest is not None and latest >= self._first:
            logger.warning(
                "%d steps so far had gradients that were not finite, set to 0; the last at nimg ="
                " %d%s",
                line["nonfinite_steps"], latest, _offending(trainer, line["last_bad_sample"]),
            )  # fmt: skip


class Snapshots(Hook):
    """Saves every tracked average to ``RUN/snapshots``, in the background."""

    def run(self, trainer: Trainer) -> None:
        """Copy the averages and return while a thread writes them."""
        trainer.outputs.save_snapshots()


class Checkpoints(Hook):
    """Saves everything that is needed to continue bit for bit, in the background."""

    def is_needed(self, trainer: Trainer) -> bool:
        """Whether a signal, Ctrl-C among them, ends the run."""
        return trainer.stopped_by is not None

    def run(self, trainer: Trainer) -> None:
        """Copy the state and return while a thread writes it, after all snapshots so far."""
        trainer.save_checkpoint()

    def finish(self, trainer: Trainer) -> None:
        """Wait for the last checkpoint."""
        trainer.checkpoints.flush()


def _offending(trainer: Trainer, sample: int | None) -> str:
    if sample is None:
        return ""
    name, row = trainer.config.data.source, trainer.batches.row(sample)
    if row >= len(trainer.dataset):
        name, row = "the prior", row - len(trainer.dataset)
    return f"; the loss of sample {sample}, image {row} of {name}, was not finite"


def _peak_memory_gib(device: torch.device) -> float:
    """Peak memory: on the GPU of a run that has one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
