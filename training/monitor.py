"""What a person sees of a run: the progress bar, ``stats.jsonl``, TensorBoard."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from edm2lite.atomic import replacing

from . import distributed
from .samples import save_picture
from .tensorboard import Board


class Monitor:
    """Shows the figures of every tick: one JSON line in ``stats.jsonl``, and what else is on.

    Rank 0 shows; on the others nothing happens.

    Attributes:
        nimg: Where the current tick began.

    Args:
        run_dir: Folder of the run.
        nimg: Where the run continues; later lines of an interrupted run are dropped, for they will
            be written again.
        total_nimg: Where it ends.
        tensorboard: Whether to write for TensorBoard too.
    """

    def __init__(self, run_dir: Path, *, nimg: int, total_nimg: int, tensorboard: bool = False):
        self.path, self._run_dir = run_dir / "stats.jsonl", run_dir
        self.main = distributed.rank() == 0
        self._board: Board | None = None
        if self.main:
            keep_until(self.path, nimg)
            self._file = open(self.path, "a", encoding="utf-8")
            if tensorboard:
                self._board = Board(run_dir / "tensorboard", nimg)
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
        self._start, self.nimg = time.perf_counter(), nimg

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self.main:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def advance(self, batch_size: int) -> None:
        """Move the bar by one step."""
        self._bar.update(batch_size)

    def report(self, nimg: int, figures: Mapping[str, Any]) -> None:
        """End the tick at ``nimg`` images: show its figures, with speed and memory, and go on.

        Args:
            nimg: Images seen.
            figures: ``loss`` and whatever else was collected: numbers, None, one number for each
                of ``ln_sigma``, or a mapping of names to numbers.
        """
        now = time.perf_counter()
        seconds, images = now - self._start, nimg - self.nimg
        self._start, self.nimg = now, nimg
        line = {"nimg": nimg, **figures}
        line["sec_per_kimg"] = round(1000 * seconds / max(images, 1), 4)
        line["img_per_sec"] = round(images / seconds, 2)
        line["mem_gib"] = round(_memory_gib(), 3)
        if self.main:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            self._bar.set_postfix(loss=f"{line['loss']:.4f}", refresh=False)
        if self._board is not None:
            self._board.add(line)

    def show_samples(self, nimg: int, sigma_rel: float, picture: NDArray[np.uint8]) -> None:
        """Keep a picture [H, W, C] of samples from an average as ``samples/<nimg>-<sigma_rel>``."""
        if self.main:
            save_picture(self._run_dir / "samples" / f"{nimg:010d}-{sigma_rel:.5f}.png", picture)
        if self._board is not None:
            self._board.add_picture(f"samples/sigma_rel {sigma_rel:.5f}", picture, nimg)


def keep_until(path: Path, nimg: int) -> None:
    """Drop the lines of a JSON-lines file that are later than ``nimg``, or cut short."""
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
