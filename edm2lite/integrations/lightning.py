"""Lightning callback: power-function averages while ``Trainer.fit`` runs.

    callback = EMACallback("runs/mine", snapshot_nimg=64_000, evaluate_with=0.10)
    Trainer(callbacks=[callback], ...).fit(model, data)

Works with ``lightning`` and with ``pytorch_lightning``, on one device, with DDP and with FSDP2
(``ModelParallelStrategy``).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edm2lite.integrations.recorder import Recorder

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer


PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _callback() -> type:
    """A Callback of every one of the packages that is loaded, or else of one that is installed."""
    found = [name for name in PACKAGES if name in sys.modules]
    if not found:
        found = [n for n in PACKAGES if importlib.util.find_spec(n.partition(".")[0])][:1]
    if not found:
        raise ImportError("this callback needs lightning: pip install 'edm2lite[lightning]'")
    bases = tuple(importlib.import_module(name).Callback for name in found)
    return type("Callback", bases, {"__module__": bases[0].__module__})


if not TYPE_CHECKING:
    Callback = _callback()


class EMACallback(Recorder, Callback):
    """A callback that averages the weights after every optimizer step.

    The clock counts the samples of all batches of all ranks: the length of the first dimension that
    the tensors of a batch share, times the number of data-parallel processes. ``samples`` replaces
    this: an int is the number of samples per optimizer step, accumulation and ranks included, and a
    function counts a batch of one process, as in ``samples=lambda batch: batch["tokens"].numel()``.

    Averages and clock are saved in Lightning's checkpoints, and ``fit(ckpt_path=...)`` continues
    them exactly. Snapshots that an interrupted run saved after its last checkpoint are archived in
    ``snapshots/superseded/``. A snapshot is also saved at the end of the fit.

    With ``evaluate_with``, validation uses that average, from ``on_validation_start`` to
    ``on_validation_end``. Lightning's own checkpoint callbacks save the raw weights. Tensors in the
    snapshots have their names in the LightningModule; to average a part of it, pass for example
    ``source=lambda m: m.net``.

    The arguments are those of :class:`edm2lite.integrations.recorder.Recorder`.

    Example:
        >>> callback = EMACallback("runs/mine", snapshot_nimg=64_000, evaluate_with=0.10)
        >>> callback.snapshots.as_posix()  # Trainer(callbacks=[callback], ...) fills it
        'runs/mine/snapshots'
    """

    _is_fit = False
    _loaded: dict[str, Any] | None = None
    _global_step = _pending = 0
    _swapped: ExitStack | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note whether this is a fit, and forget what an earlier one loaded."""
        self._is_fit, self._loaded = stage == "fit", None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start averaging, or continue from the averages in the checkpoint."""
        state, self._loaded = self._loaded, None
        continues = self._model is pl_module and self._global_step == trainer.global_step
        if state is not None or not continues:  # else: another fit of the same trainer
            steps, is_main = trainer.global_step, trainer.is_global_zero
            self._begin(pl_module, state, steps_before=steps, is_main=is_main)
            self._global_step = trainer.global_step
            self._pending = 0 if state is None else state["pending"]
        self._num_replicas = (trainer.distributed_sampler_kwargs or {}).get("num_replicas", 1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, and take the weights into the averages if it ended a step."""
        if not isinstance(self._samples, int):
            count = self._samples or count_samples
            self._pending += count(batch) * self._num_replicas
        if trainer.global_step > self._global_step:
            self._global_step = trainer.global_step
            samples = self._samples if isinstance(self._samples, int) else self._pending
            self._pending = 0
            self._advance(samples)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last snapshots and wait for the files."""
        self._finish()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the model hold the average of ``evaluate_with``."""
        if pl_module is self._model:
            self._swapped = ExitStack()
            self._swapped.enter_context(self._evaluating())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the model its own weights back."""
        self._restore_weights()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the model its own weights back, and let other processes write to the folder."""
        self._restore_weights()
        if self._ema is not None:
            self._ema.release()

    def _restore_weights(self) -> None:
        if self._swapped is not None:
            self._swapped.close()
            self._swapped = None

    def state_dict(self) -> dict[str, Any]:
        """Averages and clock for Lightning's checkpoint."""
        state = {} if self._ema is None else self._state()
        return {**state, "pending": self._pending} if state else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the averages and clock of a checkpoint until training starts."""
        if self._is_fit:
            self._loaded = state_dict  # kept until the model is on its device


def count_samples(batch: Any) -> int:
    """Number of samples in a batch: the length of the first dimension of its tensors.

    Args:
        batch: A tensor, or a mapping or sequence of batches; other values are ignored.

    Raises:
        ValueError: If there is no tensor, or lengths differ.

    Example:
        >>> count_samples({"image": torch.zeros(4, 3, 8, 8), "label": torch.zeros(4)})
        4
    """
    lengths = {len(tensor) for tensor in _tensors(batch) if tensor.ndim}
    if len(lengths) != 1:
        raise ValueError(
            "the tensors of a batch must share their first dimension for its samples to be counted,"
            f" found lengths {sorted(lengths) or 'none'}; give samples="
        )
    return lengths.pop()


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        yield from _tensors(list(batch.values()))
    elif isinstance(batch, (list, tuple)):
        for item in batch:
            yield from _tensors(item)
