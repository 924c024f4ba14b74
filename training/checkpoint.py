"""Checkpoints: everything needed to continue a run bit for bit.

A checkpoint is a folder ``checkpoints/<nimg>`` in torch.distributed.checkpoint's format. It is
written under another name and renamed when complete; the two newest are kept.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from edm2lite.ema import PowerFunctionEMA
from edm2lite.tensorfile import sync

from . import distributed

KEEP = 2


def save(
    folder: Path,
    nimg: int,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: PowerFunctionEMA,
    figures: dict[str, Tensor],
) -> Path:
    """Write ``folder/<nimg>``; every rank calls this. ``figures``: counters, the same on all."""
    final = folder / f"{nimg:012d}"
    temporary = folder / f".{nimg:012d}.partial"
    if distributed.rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    distributed.barrier()
    with _quiet():
        alone = not distributed.is_group()
        dcp.save(_state(net, optimizer, ema, figures), checkpoint_id=temporary, no_dist=alone)
    distributed.barrier()
    if distributed.rank() == 0:
        for path in temporary.iterdir():
            sync(path)
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
        sync(folder)
        for old in _complete(folder)[:-KEEP]:
            shutil.rmtree(old)
    distributed.barrier()
    return final


def load_latest(
    folder: Path,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: PowerFunctionEMA,
    figures: dict[str, Tensor],
) -> int:
    """Continue from the newest checkpoint, if any, in place; returns its image count, or 0."""
    found = _complete(folder)
    if not found:
        return 0
    state = _state(net, optimizer, ema, figures)
    with _quiet():
        dcp.load(state, checkpoint_id=found[-1], no_dist=not distributed.is_group())
    set_model_state_dict(net, state["net"])
    set_optimizer_state_dict(net, optimizer, state["optimizer"])
    ema.load_state_dict(state["ema"])
    return ema.nimg


def _state(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: PowerFunctionEMA,
    figures: dict[str, Tensor],
) -> dict[str, Any]:
    return {
        "net": get_model_state_dict(net),
        "optimizer": get_optimizer_state_dict(net, optimizer),
        "ema": ema.state_dict(),
        "figures": figures,
    }


def _complete(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(path for path in folder.glob("[0-9]*") if (path / ".metadata").is_file())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning that a single process saves alone: it is meant to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield
