"""What a run leaves for others: EMA snapshots, grids of samples, the last weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edm2lite.diffusion.precond import Precond
from edm2lite.ema import PowerFunctionEMA, stale
from edm2lite.ema.model_tensors import named_tensors
from edm2lite.ema.shards import gather
from edm2lite.tensorfile import MODEL_FORMAT, save_tensors

from . import distributed
from .config import RunConfig
from .samples import sample_grids

logger = logging.getLogger(__name__)


class Outputs:
    """The files of a run in ``run_dir``; rank 0 writes, and every rank calls every method.

    Args:
        config: Of the run.
        run_dir: Its folder.
        net, ema: What is saved.
        is_sharded: Whether ranks hold parts of the weights, which are then gathered one by one.
    """

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        net: Precond,
        ema: PowerFunctionEMA,
        *,
        is_sharded: bool,
    ):
        self.config, self.net, self.ema = config, net, ema
        self.run_dir, self.snapshots = run_dir, run_dir / "snapshots"
        self._main = distributed.rank() == 0
        self._takes_part = is_sharded or self._main
        self._metadata = {
            "model": config.net.to_json(),
            "encoder": config.encoder.to_json(),
            "data": config.data.source,
        }

    def set_aside_after(self, nimg: int) -> None:
        """Move the snapshots of later than ``nimg``, where the run continues, out of its way."""
        if self._main:
            stale.archive(self.snapshots, nimg)

    def save_snapshots(self) -> None:
        """Copy every average to host memory and return while a thread writes."""
        if self._takes_part:
            dtype = getattr(torch, self.config.ema.dtype)
            self.ema.save_snapshots(self.snapshots, dtype, self._metadata, background=True)

    def finish_snapshots(self) -> None:
        """Wait for the snapshots on their way, and drop set-aside copies that they repeat."""
        self.ema.flush()
        if self._main:
            stale.delete_reproduced(self.snapshots)

    def samples(self) -> Iterator[tuple[float, NDArray[np.uint8]]]:
        """(sigma_rel, picture) of each average, on the ranks that take part."""
        if self._takes_part:
            yield from sample_grids(
                self.net,
                self.ema,
                self.config.encoder,
                count=self.config.sample_count,
                num_steps=self.config.sample_steps,
                batch_size=self.config.microbatch,
            )

    def save_last(self, nimg: int) -> None:
        """Write the raw weights at the end of the run, ``last.safetensors``."""
        tensors = gather(named_tensors(self.net), torch.float32, keep=self._main)
        if self._main:
            extra = {"run": self.ema.run, "nimg": str(nimg), "average": "none"}
            metadata = {"format": MODEL_FORMAT, **self._metadata, **extra}
            save_tensors(self.run_dir / "last.safetensors", tensors, metadata)
            for path in stale.delete_reproduced(self.snapshots):
                logger.warning("%s differs from what the run wrote when it came by again", path)
