"""Hugging Face Trainer callback: power-function averages while ``Trainer.train`` runs.

    callback = EMACallback("runs/mine", snapshot_nimg=64_000)
    Trainer(model, args, callbacks=[callback], ...).train()

Works on one device and with DDP, and in trainers derived from Trainer. Shards of FSDP2 are averaged
as everywhere, but a Trainer shards on GPUs alone and has not been tried with it.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xxhash

from edm2lite.integrations.recorder import Recorder
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
            "the callback needs transformers: pip install 'edm2lite[transformers]'"
        ) from error

FORMAT = "edm2lite.ema-state/1"
STATE = "ema_state.safetensors"
"""In every checkpoint of the Trainer: averages and clock."""


class EMACallback(Recorder, TrainerCallback):
    """Averages the weights after every optimizer step, whatever the gradient accumulation.

    The clock counts per batch the samples of a full one: ``per_device_train_batch_size`` times the
    data-parallel processes, for each batch that was accumulated. ``samples`` replaces this by the
    samples of an optimizer step (int, accumulation and processes included), or by a function of the
    TrainerState that gives all samples, or tokens, seen so far: ``samples=lambda state:
    state.num_input_tokens_seen``, with ``include_num_input_tokens_seen`` of TrainingArguments.

    Averages and clock lie in ``ema_state.safetensors`` in every checkpoint of the Trainer, and
    ``train(resume_from_checkpoint=...)`` continues them exactly. A checkpoint elsewhere than in
    ``output_dir`` must also be named as ``resume_from_checkpoint`` of TrainingArguments: callbacks
    are not told. Snapshots of after that moment, from before the interruption, move to
    ``snapshots/superseded/``. The end of training has a snapshot too.

    With ``evaluate_with``, install it by :meth:`attach` in place of ``callbacks=[...]``: Trainer
    has no event that comes before an evaluation.

    Arguments are those of :class:`edm2lite.integrations.recorder.Recorder`.
    """

    _batches = 0  # accumulated since the last optimizer step
    _is_attached = False

    def attach(self, trainer: Trainer) -> None:
        """Add this callback to ``trainer``, whose evaluations then use ``evaluate_with``."""
        inner = trainer.evaluation_loop

        @functools.wraps(inner)
        def evaluation_loop(*args: Any, **kwargs: Any) -> Any:
            with self._evaluating():
                return inner(*args, **kwargs)

        trainer.evaluation_loop = evaluation_loop  # of this trainer only
        self._is_attached = True
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._evaluate_with is not None and not self._is_attached:
            raise ValueError("evaluate_with needs attach(trainer) in place of callbacks=[...]")
        if state.is_hyper_param_search:
            raise ValueError("one callback averages one run, this is a search over many; train one")
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
        self._batches += 1

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
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
        self._finish()


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"


def _identity(state: TrainerState) -> dict[str, str]:
    """What a checkpoint and the averages in it have in common."""
    log = json.dumps(state.log_history, sort_keys=True)
    return {"global_step": str(state.global_step), "log": xxhash.xxh3_128_hexdigest(log.encode())}


def _load(args: TrainingArguments, state: TrainerState) -> dict[str, Any] | None:
    """The averages of the checkpoint from which training goes on; None if it has none.

    Raises:
        ValueError: The file is damaged, or of another checkpoint.
    """
    named = args.resume_from_checkpoint
    folder = Path(named) if named and Path(named).is_dir() else _folder(args, state)
    path = folder / STATE
    if not path.is_file():
        return None
    tensors, metadata = load_tensors(path)
    if metadata.get("format") != FORMAT or not _identity(state).items() <= metadata.items():
        raise ValueError(
            f"{path} must be of the checkpoint from which training goes on, step"
            f" {state.global_step}, and is of another; set TrainingArguments(resume_from_checkpoint"
            "=...) to that one's folder"
        )
    saved = json.loads(metadata["state"])
    averages: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        length, _, name = key.partition("/")
        averages.setdefault(length, {})[name] = value
    saved["ema"]["averages"] = averages
    return saved


def _batch_size(loader: Any) -> int:
    """Samples in a full batch of all data-parallel processes.

    Raises:
        ValueError: The loader does not say.
    """
    size = getattr(loader, "total_batch_size", None)
    if size is None:
        raise ValueError("the data loader does not tell its batch size; give samples=")
    return size
