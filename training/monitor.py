"""What a person sees of a run: the progress bar and ``stats.jsonl``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from edm2lite.tensorfile import replacing

from . import distributed


class Monitor:
    """Collects figures over a tick and reports them: one JSON line in ``stats.jsonl``.

    Every rank adds and reports; rank 0 writes. Figures stay on the device until reported.

    Args:
        run_dir: Folder of the run.
        nimg: Where the run continues; later lines of an interrupted run are dropped, for they will
            be written again.
        total_nimg: Where it ends.
        sums: [2] float64, loss and samples of all ranks since the last report, from a checkpoint.
    """

    def __init__(self, run_dir: Path, *, nimg: int, total_nimg: int, sums: Tensor):
        self.path = run_dir / "stats.jsonl"
        self.main = distributed.rank() == 0
        if self.main:
            _keep_until(self.path, nimg)
            self._file = open(self.path, "a", encoding="utf-8")
        self._bar = tqdm(
            total=total_nimg,
            initial=nimg,
            unit="img",
            unit_scale=True,
            desc="train",
            disable=not self.main,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 10,
        )
        self._sums = sums.clone() if self.main else torch.zeros_like(sums)
        self._start, self._nimg = time.perf_counter(), nimg

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self.main:
            self._file.close()

    def add(self, losses: Tensor) -> None:
        """Take in the per-element losses [N] of this rank's samples."""
        self._sums[0] += losses.sum(dtype=torch.float64)
        self._sums[1] += len(losses)

    def advance(self, batch_size: int) -> None:
        """Move the bar by one step."""
        self._bar.update(batch_size)

    def sums(self) -> Tensor:
        """[2] loss and samples of all ranks since the last report; every rank calls this."""
        return distributed.sum_(self._sums.clone())

    def report(self, nimg: int, **figures: Any) -> None:
        """End the tick at ``nimg`` images: write its line and start the next one."""
        total, count = self.sums().tolist()
        self._sums.zero_()
        now = time.perf_counter()
        seconds, images = now - self._start, nimg - self._nimg
        self._start, self._nimg = now, nimg
        line = {"nimg": nimg, "loss": total / max(count, 1), **figures}
        line["sec_per_kimg"] = round(1000 * seconds / max(images, 1), 4)
        line["mem_gib"] = round(_memory_gib(), 3)
        if self.main:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            self._bar.set_postfix(loss=f"{line['loss']:.4f}", refresh=False)


def _keep_until(path: Path, nimg: int) -> None:
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["nimg"] <= nimg]
    if kept != lines:
        with replacing(path) as file:
            file.writelines(line + "\n" for line in kept)


def _memory_gib() -> float:
    """Peak memory: of the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
