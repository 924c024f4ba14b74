"""What every framework's callback shares: the averages of a run, its clock and its snapshots.

The clock counts samples, so that a resumed run, another batch size or an incomplete accumulation
keeps the profile exact. A step that a gradient scaler skips is an update with unchanged weights:
the samples were seen, and the weights were what they were meanwhile.
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
from edm2lite.ema.snapshot import refuse_other_runs
from edm2lite.ema.source import Source, is_sharded, named, on_host

logger = logging.getLogger(__name__)


class Recorder:
    """Averages of a run in another's trainer, with snapshots in ``run_dir/snapshots``.

    Args:
        run_dir: What ``reconstruct_ema`` and ``edm2lite snapshots`` take afterwards. Rank 0 writes.
        snapshot_nimg: Samples from snapshot to snapshot; saved at the first step that reaches the
            next multiple. 1/30 to 1/60 of the run is a good choice (docs/ema.md).
        snapshot_steps: The same in optimizer steps, in place of ``snapshot_nimg``.
        samples: How the clock counts; the callback says what it takes and does without it.
        sigma_rels: As :class:`edm2lite.ema.PowerFunctionEMA`.
        gammas: The same.
        evaluate_with: One of the lengths; validation then sees that average. [default: raw weights]
        source: What is averaged of the model that trains, a part of it or a mapping of names to
            tensors; asked at every step. [default: the model]
        start_nimg: Samples that count as seen before the first step, when averaging begins with a
            model that was trained before. A checkpoint that holds averages goes before it.
        device: Where the averages are kept; "cpu" takes no memory of a GPU.
        snapshot_dtype: float32, float16 or bfloat16, of the stored values.

    Raises:
        ValueError: Neither or both cadences, or one that is not positive.
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
        evaluate_with: float | None = None,
        source: Callable[[Any], Source] | None = None,
        start_nimg: int | None = None,
        device: str | None = None,
        snapshot_dtype: torch.dtype = torch.float32,
    ):
        if (snapshot_nimg is None) == (snapshot_steps is None):
            raise ValueError("give one of snapshot_nimg and snapshot_steps: when to save snapshots")
        if (snapshot_nimg or snapshot_steps or 0) <= 0:
            raise ValueError(
                "snapshots must be at least one sample or step apart, got"
                f" snapshot_nimg = {snapshot_nimg}, snapshot_steps = {snapshot_steps}"
            )
        self.snapshots = Path(run_dir) / "snapshots"
        self.nimg = 0
        """Samples seen so far."""
        self._snapshot_nimg, self._snapshot_steps = snapshot_nimg, snapshot_steps
        self._samples = samples
        self._tracker = partial(
            PowerFunctionEMA,
            sigma_rels=sigma_rels,
            gammas=gammas,
            start_nimg=start_nimg or 0,
            device=device,
        )
        self._evaluate_with = evaluate_with
        self._source = source or (lambda model: model)
        self._start_nimg = start_nimg
        self._snapshot_dtype = snapshot_dtype
        self._ema: PowerFunctionEMA | None = None
        self._model: Any = None
        self._steps = 0
        self._saved_nimg = -1

    @property
    def ema(self) -> PowerFunctionEMA:
        """The averages. Outside of validation, ``with callback.ema.applied(0.10): ...`` uses one.

        Raises:
            RuntimeError: Training has not begun.
        """
        if self._ema is None:
            raise RuntimeError("there are averages from the beginning of training on, not before")
        return self._ema

    def _begin(self, model: nn.Module, state: Any, *, steps_before: int, is_main: bool) -> None:
        """Start averaging ``model``, or continue from ``state``.

        Raises:
            ValueError: The model cannot be averaged, ``steps_before`` were made without averages,
                or ``run_dir`` belongs to another run. Nothing has been written then.
        """
        _refuse_foreign_shards(model)
        if state is None and steps_before and self._start_nimg is None:
            raise ValueError(
                f"training goes on after {steps_before} steps and the checkpoint holds no averages;"
                " give start_nimg, the samples seen by now, to begin averaging here"
            )
        source = self._source(model)
        ema = self._tracker(source)
        if self._evaluate_with is not None:
            _check_evaluation(self._evaluate_with, ema, model, source)
        self.nimg, self._steps = ema.start_nimg, 0
        if state is not None:
            averages = _spread(state["ema"]["averages"], ema)
            ema.load_state_dict({**state["ema"], "averages": averages})
            self.nimg, self._steps = state["nimg"], state["steps"]
        if is_main:
            refuse_other_runs(self.snapshots, ema.run)
            stale.set_aside(self.snapshots, self.nimg)
        self._ema, self._model, self._is_main = ema, model, is_main
        self._takes_part = is_main or any(is_sharded(t) for t in named(source).values())
        self._saved_nimg = -1

    def _advance(self, samples: int) -> None:
        """An optimizer step has been made, ``samples`` after the last call."""
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
        """Snapshots of now, written by a thread while training goes on."""
        if self._takes_part and self.ema.history:  # empty if every update so far was refused
            self.ema.save_snapshots(self.snapshots, self._snapshot_dtype, background=True)
        self._saved_nimg = self.nimg

    def _finish(self) -> None:
        """Snapshots of the last step, if there are none yet; returns when all are on disk."""
        if self.nimg > self._saved_nimg:
            self._save()
        for path in self._settle():
            logger.warning("%s differs from what the run wrote when it came by again", path)

    def _settle(self) -> list[Path]:
        self.ema.flush()
        return stale.settle(self.snapshots) if self._is_main else []

    def _state(self) -> dict[str, Any]:
        """What a checkpoint must hold: whole tensors on the host, on rank 0; {} on others.

        Every rank must call this. Snapshots of before are on disk when it returns.
        """
        self._settle()
        if not self._takes_part:
            return {}
        state = self.ema.state_dict()
        averages = {
            length: on_host(tensors, torch.float32, keep=self._is_main)
            for length, tensors in state["averages"].items()
        }
        ema = {"averages": averages, "clock": state["clock"]}
        return {"ema": ema, "nimg": self.nimg, "steps": self._steps} if self._is_main else {}

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Within the block the model has the weights that it is to be evaluated with."""
        if self._evaluate_with is None or self._ema is None:
            yield
        else:
            with self._ema.applied(self._evaluate_with):
                yield


def _spread(
    averages: Mapping[str, Mapping[str, Tensor]], ema: PowerFunctionEMA
) -> dict[str, dict[str, Tensor]]:
    """Whole tensors as the tracker holds them: each rank its part where they are sharded."""
    live = ema.state_dict()["averages"]
    return {
        length: {n: _part(value, live.get(length, {}).get(n)) for n, value in values.items()}
        for length, values in averages.items()
    }


def _part(whole: Tensor, like: Any) -> Tensor:
    if like is None or not is_sharded(like):  # a name that is not tracked is refused by the tracker
        return whole
    from torch.distributed.tensor import distribute_tensor

    mesh = like.device_mesh
    on_device = whole.to(like.to_local().device)
    return distribute_tensor(on_device, mesh, like.placements, src_data_rank=None)


def _refuse_foreign_shards(model: nn.Module) -> None:
    """Raise ValueError for weights that are not where the module says."""
    if any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()):
        raise ValueError("averages of shards need FSDP2 (fully_shard), this model is FSDP1")
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
    own = {id(t) for t in model.state_dict(keep_vars=True).values()}
    computed = [name for name, tensor in named(source).items() if id(tensor) not in own]
    if computed:
        raise ValueError(
            "evaluate_with needs averages of the model's own tensors, source makes others:"
            f" {computed[:5]}; leave it out and evaluate what is rebuilt from the snapshots"
        )
