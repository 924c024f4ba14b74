"""What the callbacks of all frameworks share: the averages of a run, its clock and its snapshots.

The clock counts samples, so that the profile stays exact when a run is resumed, the batch size
changes or an accumulation is incomplete. A step that a gradient scaler skips is an update with
unchanged weights: its samples were seen, and the weights stayed the same meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edm2lite.ema import PowerFunctionEMA, stale
from edm2lite.ema.clocks import checked_clock
from edm2lite.ema.model_tensors import Source, named_tensors
from edm2lite.ema.shards import distributed_like, gather, is_sharded

logger = logging.getLogger(__name__)


class Recorder:
    """Tracks the averages of a run in a trainer, and saves snapshots in ``run_dir/snapshots``.

    Args:
        run_dir: Folder of the run, for ``reconstruct_ema`` and ``edm2lite snapshots`` later. Only
            rank 0 writes to it.
        snapshot_nimg: Samples between snapshots. One is saved at the first step that reaches the
            next multiple; 1/30 to 1/60 of the run is a good choice (docs/ema.md).
        snapshot_steps: Optimizer steps between snapshots, in place of ``snapshot_nimg``.
        samples: What the clock counts: the number of samples per optimizer step, or a function.
            See the class of each callback for the argument of the function and for the default.
        sigma_rels: EMA lengths to track, each in (0, 0.2887). [default: 0.05 and 0.10]
        gammas: Exponents to track, in place of ``sigma_rels``.
        uniform: Whether to track the plain mean of the run (gamma = 0) too.
        clock: What the clock counts, as snapshots record it: ``images`` (or samples of any kind),
            ``tokens`` or ``steps``.
        evaluate_with: Tracked length to use in validation. [default: the raw weights]
        source: Function from the model that trains to what is averaged: a part of it, or a mapping
            of names to tensors. It is called at every step. [default: the model itself]
        start_nimg: Samples that count as seen before the first step, for a model that was trained
            before. Averages in a checkpoint take precedence.
        device: Device of the averages; ``"cpu"`` takes no GPU memory.
        snapshot_dtype: Stored floating-point type: float32, float16 or bfloat16.

    Attributes:
        snapshots: Folder of the snapshots.
        nimg: Samples seen so far.

    Raises:
        ValueError: If not exactly one cadence is given, it is not positive, or ``clock`` is
            unknown.

    Example:
        >>> recorder = Recorder("runs/mine", snapshot_nimg=64_000, sigma_rels=(0.05, 0.10))
        >>> recorder.nimg, recorder.snapshots.name
        (0, 'snapshots')
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        snapshot_nimg: int | None = None,
        snapshot_steps: int | None = None,
        samples: int | Callable[[Any], int] | None = None,
        sigma_rels: Sequence[float] | None = None,
        gammas: Sequence[float] | None = None,
        uniform: bool = False,
        clock: str = "images",
        evaluate_with: float | None = None,
        source: Callable[[Any], Source] | None = None,
        start_nimg: int | None = None,
        device: str | None = None,
        snapshot_dtype: torch.dtype = torch.float32,
    ):
        if (snapshot_nimg is None) == (snapshot_steps is None):
            raise ValueError(
                "give the cadence of the snapshots as one of snapshot_nimg and snapshot_steps, got"
                f" {snapshot_nimg} and {snapshot_steps}"
            )
        if (snapshot_nimg or snapshot_steps or 0) <= 0:
            raise ValueError(
                "snapshots must be at least one sample or step apart, got"
                f" snapshot_nimg = {snapshot_nimg}, snapshot_steps = {snapshot_steps}"
            )
        self.snapshots = Path(run_dir) / "snapshots"
        self.nimg = 0
        self._snapshot_nimg, self._snapshot_steps = snapshot_nimg, snapshot_steps
        self._samples = samples
        self._tracker = partial(
            PowerFunctionEMA,
            sigma_rels=sigma_rels,
            gammas=gammas,
            uniform=uniform,
            clock=checked_clock(clock),
            start_nimg=start_nimg or 0,
            device=device,
        )
        self._evaluate_with = evaluate_with
        self._source = source or _itself  # no lambda, which could not be sent to other processes
        self._start_nimg = start_nimg
        self._snapshot_dtype = snapshot_dtype
        self._ema: PowerFunctionEMA | None = None
        self._model: Any = None
        self._steps = 0
        self._saved_nimg = -1

    @property
    def ema(self) -> PowerFunctionEMA:
        """The averages. Outside of validation, use one by ``with callback.ema.applied(0.10):``.

        Raises:
            RuntimeError: If training has not begun.
        """
        if self._ema is None:
            raise RuntimeError("averages exist only once training has begun; start it first")
        return self._ema

    def _begin(self, model: nn.Module, state: Any, *, steps_before: int, is_main: bool) -> None:
        """Start averaging a model, or continue from a checkpoint.

        Args:
            model: The model that trains.
            state: Result of :meth:`_state` from the checkpoint; None if there is none.
            steps_before: Optimizer steps made before this moment.
            is_main: Whether this process writes files.

        Raises:
            ValueError: If the model cannot be averaged, steps were made without averages, or
                ``run_dir`` belongs to another run. Nothing has been written then.
        """
        _refuse_foreign_shards(model)
        if state is None and steps_before and self._start_nimg is None:
            raise ValueError(
                "a checkpoint to continue from must hold averages, the one of step"
                f" {steps_before} holds none; give start_nimg, the samples seen by now, to begin"
                " averaging here"
            )
        source = self._source(model)
        ema = self._tracker(source)
        if self._evaluate_with is not None:
            _check_evaluation(self._evaluate_with, ema, model, source)
        self.nimg, self._steps = ema.start_nimg, 0
        if state is not None:
            averages = _shard_averages(state["ema"]["averages"], ema)
            ema.load_state_dict({**state["ema"], "averages": averages})
            self.nimg, self._steps = state["nimg"], state["steps"]
        if is_main:
            ema.claim(self.snapshots)
        self._ema, self._model, self._is_main = ema, model, is_main
        self._takes_part = is_main or any(is_sharded(t) for t in named_tensors(source).values())
        self._saved_nimg = -1

    def _advance(self, samples: int) -> None:
        """Count an optimizer step over ``samples`` samples, and save snapshots if they are due."""
        before, self.nimg = self.nimg, self.nimg + samples
        self._steps += 1
        self.ema.update(self.nimg, self._source(self._model))
        if self._snapshot_nimg is not None:
            due = self.nimg // self._snapshot_nimg > before // self._snapshot_nimg
        else:
            due = self._steps % (self._snapshot_steps or 1) == 0
        if due:
            self._save()

    def _save(self) -> None:
        """Save the averages in snapshots, written by a thread while training continues."""
        if self._takes_part and self.ema.history:  # empty if every update so far was refused
            self.ema.save_snapshots(self.snapshots, self._snapshot_dtype, background=True)
        self._saved_nimg = self.nimg

    def _finish(self) -> None:
        """Save snapshots of the last step if there are none, and wait until all are on disk.

        From then on other processes may write to the folder, or this one again.
        """
        if self.nimg > self._saved_nimg:
            self._save()
        for path in self._settle():
            logger.warning("%s differs from what the continued run wrote in its place", path)
        self.ema.release()

    def _settle(self) -> list[Path]:
        """Wait for the files; the archived snapshots that differ from what the run wrote again."""
        self.ema.flush()
        return stale.delete_reproduced(self.snapshots) if self._is_main else []

    def _state(self) -> dict[str, Any]:
        """What a checkpoint must hold, with full tensors in host memory.

        Every rank must call this. Earlier snapshots are on disk when it returns.

        Returns:
            The state on rank 0, and {} on the others.
        """
        self._settle()
        if not self._takes_part:
            return {}
        state = self.ema.state_dict()
        averages = {
            length: gather(tensors, torch.float32, keep=self._is_main)
            for length, tensors in state["averages"].items()
        }
        ema = {"averages": averages, "clock": state["clock"]}
        return {"ema": ema, "nimg": self.nimg, "steps": self._steps} if self._is_main else {}

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Let the model hold the weights that ``evaluate_with`` asks for, within the block."""
        if self._evaluate_with is None or self._ema is None:
            yield
        else:
            with self._ema.applied(self._evaluate_with):
                yield


def _itself(model: nn.Module) -> nn.Module:
    return model


def _shard_averages(
    averages: Mapping[str, Mapping[str, Tensor]], ema: PowerFunctionEMA
) -> dict[str, dict[str, Tensor]]:
    """Full tensors of a checkpoint, sharded as the tracker holds them."""
    live = ema.state_dict()["averages"]
    return {
        length: {n: distributed_like(v, live.get(length, {}).get(n)) for n, v in values.items()}
        for length, values in averages.items()
    }


def _refuse_foreign_shards(model: nn.Module) -> None:
    """Refuse a model whose parameters do not hold the weights (FSDP1, DeepSpeed ZeRO 3)."""
    if any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()):
        raise ValueError(
            "averages need weights that are whole or sharded by FSDP2, these are sharded by FSDP1;"
            " use fully_shard (FSDP2)"
        )
    if any(hasattr(p, "ds_id") for p in model.parameters()):
        raise ValueError(
            "averages need weights that are whole or sharded by FSDP2, these are partitioned by"
            " DeepSpeed ZeRO 3; use FSDP2, or ZeRO 1 or 2"
        )


def _check_evaluation(
    sigma_rel: float, ema: PowerFunctionEMA, model: nn.Module, source: Source
) -> None:
    if sigma_rel not in ema.sigma_rels:
        raise ValueError(
            f"evaluate_with must be one of the lengths {ema.sigma_rels}, got {sigma_rel}"
        )
    existing = {id(t) for t in model.state_dict(keep_vars=True).values()}
    computed = [name for name, t in named_tensors(source).items() if id(t) not in existing]
    if computed:
        raise ValueError(
            "evaluate_with needs averages of the model's own tensors, source computes others:"
            f" {computed[:5]}; leave it out and evaluate what is rebuilt from the snapshots"
        )
