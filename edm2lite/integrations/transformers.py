"""Hugging Face Trainer callback: power-function averages while ``Trainer.train`` runs.

    callback = EMACallback("runs/mine", snapshot_nimg=64_000)
    Trainer(model, args, callbacks=[callback], ...).train()

Works on one device and with DDP, and in classes derived from Trainer. Sharding by FSDP2 is
supported like everywhere else, but Trainer shards only on GPUs, where this has not been tested.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xxhash

from edm2lite.integrations.recorder import Recorder
from edm2lite.strict_json import parse_object
from edm2lite.tensorfile import load_tensors, save_tensors

if TYPE_CHECKING:
    from transformers import (
        Trainer,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )
else:
    try:
        from transformers import TrainerCallback
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ImportError(
            "this callback needs transformers: pip install 'edm2lite[transformers]'"
        ) from error

FORMAT = "edm2lite.ema-state/1"
STATE = "ema_state.safetensors"
"""File with the averages and the clock in every checkpoint of the Trainer."""


class EMACallback(Recorder, TrainerCallback):
    """A callback that averages the weights after every optimizer step.

    The clock counts every accumulated batch as a full one: ``per_device_train_batch_size`` times
    the number of data-parallel processes. ``samples`` replaces this: an int is the number of
    samples per optimizer step, accumulation and processes included, and a function maps the
    TrainerState to all samples, or tokens, seen so far, as in ``samples=lambda state:
    state.num_input_tokens_seen`` (set ``include_num_input_tokens_seen`` in TrainingArguments).

    Averages and clock are saved as ``ema_state.safetensors`` in every checkpoint of the Trainer,
    and ``train(resume_from_checkpoint=...)`` continues them exactly. Callbacks are not told where
    training resumes from, so name a checkpoint outside of ``output_dir`` in TrainingArguments
    (``resume_from_checkpoint``) too. Snapshots that an interrupted run saved after its last
    checkpoint are archived in ``snapshots/superseded/``. A snapshot is also saved at the end.

    With ``evaluate_with``, install the callback by :meth:`attach` instead of ``callbacks=[...]``:
    Trainer has no event before an evaluation.

    The arguments are those of :class:`edm2lite.integrations.recorder.Recorder`.

    Example:
        >>> callback = EMACallback("runs/mine", snapshot_steps=100)
        >>> callback.snapshots.as_posix()  # Trainer(model, args, callbacks=[callback]) fills it
        'runs/mine/snapshots'
    """

    _batches = 0  # number accumulated since the last optimizer step
    _is_attached = False

    def attach(self, trainer: Trainer) -> None:
        """Add this callback to a trainer and let its evaluations use ``evaluate_with``.

        Args:
            trainer: The trainer; other trainers are not affected.
        """
        inner = trainer.evaluation_loop

        @functools.wraps(inner)
        def evaluation_loop(*args: Any, **kwargs: Any) -> Any:
            with self._evaluating():
                return inner(*args, **kwargs)

        trainer.evaluation_loop = evaluation_loop
        self._is_attached = True
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start averaging, or continue from the averages in the checkpoint."""
        if self._evaluate_with is not None and not self._is_attached:
            raise ValueError(
                "evaluate_with needs attach(trainer) in place of callbacks=[...]; attach was not"
                " called"
            )
        if state.is_hyper_param_search:
            raise ValueError(
                "one callback averages one run, this is a hyperparameter search over many; train"
                " one at a time"
            )
        self._batches = 0
        saved = _load(args, state) if state.global_step else None
        self._begin(
            kwargs["model"],
            saved,
            steps_before=state.global_step,
            is_main=state.is_world_process_zero,
        )

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count a batch that is accumulated."""
        self._batches += 1

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the weights into the averages."""
        batches, self._batches = self._batches + 1, 0
        if self._samples is None:
            self._advance(batches * _batch_size(kwargs["train_dataloader"]))
        elif isinstance(self._samples, int):
            self._advance(self._samples)
        else:
            self._advance(self._samples(state) - self.nimg)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save averages and clock in the checkpoint that was just written."""
        saved = self._state()
        if saved:
            tensors = {
                f"{length}/{name}": value
                for length, values in saved["ema"].pop("averages").items()
                for name, value in values.items()
            }
            metadata = {"format": FORMAT, "state": json.dumps(saved), **_identity(state)}
            save_tensors(_folder(args, state) / STATE, tensors, metadata)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save the last snapshots and wait for the files."""
        self._finish()


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"


def _identity(state: TrainerState) -> dict[str, str]:
    """Metadata that shows which checkpoint the averages belong to."""
    log = json.dumps(state.log_history, sort_keys=True)
    return {"global_step": str(state.global_step), "log": xxhash.xxh3_128_hexdigest(log.encode())}


def _load(args: TrainingArguments, state: TrainerState) -> dict[str, Any] | None:
    """The averages of the checkpoint from which training continues; None if it has none.

    Raises:
        ValueError: If the file is damaged, or belongs to another checkpoint.
    """
    checkpoint = args.resume_from_checkpoint
    found = checkpoint and Path(checkpoint).is_dir()
    folder = Path(checkpoint) if found else _folder(args, state)
    path = folder / STATE
    if not path.is_file():
        return None
    tensors, metadata = load_tensors(path)
    if metadata.get("format") != FORMAT or not _identity(state).items() <= metadata.items():
        raise ValueError(
            f"{path} must belong to the checkpoint from which training continues, step"
            f" {state.global_step}, and belongs to another; set"
            " TrainingArguments(resume_from_checkpoint=...) to the folder of that checkpoint"
        )
    saved = parse_object(metadata["state"])
    averages: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        length, _, name = key.partition("/")
        averages.setdefault(length, {})[name] = value
    saved["ema"]["averages"] = averages
    return saved


def _batch_size(loader: Any) -> int:
    """Number of samples in a full batch of all data-parallel processes.

    Raises:
        ValueError: If the loader has no ``total_batch_size``.
    """
    size: int | None = getattr(loader, "total_batch_size", None)
    if size is None:
        raise ValueError(
            "the data loader must have a total_batch_size for samples to be counted, and has none;"
            " give samples="
        )
    return size
