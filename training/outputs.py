"""What a run leaves for others: EMA snapshots and the last weights."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from functools import partial
from pathlib import Path

import numpy as np
import torch

from edm2lite.dataset import ImageDataset
from edm2lite.ema import PowerFunctionEMA, stale
from edm2lite.ema.shards import gather
from edm2lite.models.class_names import names_to_metadata
from edm2lite.tensorfile import ADAPTER_FORMAT, MODEL_FORMAT, save_tensors

from . import distributed
from .config import RunConfig
from .tuned import Tuned

logger = logging.getLogger(__name__)


class Outputs:
    """The model files of a run; rank 0 writes, and every rank calls every method.

    Args:
        config: Configuration of the run.
        run_dir: Folder of the run.
        tuned: What is trained.
        ema: The tracked averages.
        dataset: Training data.
        is_sharded: Whether ranks hold parts of the weights, which are then gathered one by one.
    """

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        tuned: Tuned,
        ema: PowerFunctionEMA,
        dataset: ImageDataset,
        *,
        is_sharded: bool,
    ):
        self.config, self.tuned, self.ema = config, tuned, ema
        self.run_dir, self.snapshots = run_dir, run_dir / "snapshots"
        self._main = distributed.rank() == 0
        self._takes_part = is_sharded or self._main
        self._metadata = {
            **tuned.metadata(),
            "encoder": config.encoder.to_json(),
            **({} if config.text is None else {"text_encoder": config.text.to_json()}),
            "data": config.data.source,
            "label_dropout": repr(_share_untold(config)),
            **_unlabeled(config, dataset),
            **_class_names(config, dataset),
            **_normalization(config, dataset),
        }

    def begin(self) -> None:
        """Claim the snapshots for this process, and archive those of a course that was given up.

        Raises:
            ValueError: If another process writes to this folder.
            RankZeroError: On the other ranks, if rank 0 failed.
        """
        distributed.on_rank_zero(partial(self.ema.claim, self.snapshots))

    def save_snapshots(self) -> None:
        """Copy every average to host memory and return while a thread writes."""
        if self._takes_part:
            dtype = getattr(torch, self.config.ema.dtype)
            self.ema.save_snapshots(self.snapshots, dtype, self._metadata, background=True)

    def finish_snapshots(self) -> None:
        """Wait for the snapshots on their way, and delete archived ones that were reproduced."""
        self.ema.flush()
        if self._main:
            stale.delete_reproduced(self.snapshots)

    def save_last(self, nimg: int) -> None:
        """Write the raw weights at the end of the run, ``last.safetensors``."""
        tensors = gather(self.tuned.tensors(), torch.float32, keep=self._main)
        if self._main:
            extra = {"run": self.ema.run, "nimg": str(nimg), "average": "none"}
            form = ADAPTER_FORMAT if "adapter" in self._metadata else MODEL_FORMAT
            metadata = {"format": form, **self._metadata, **extra}
            save_tensors(self.run_dir / "last.safetensors", tensors, metadata)
            for path in stale.delete_reproduced(self.snapshots):
                logger.warning("%s differs from what the run wrote when it came by again", path)


def _unlabeled(config: RunConfig, dataset: ImageDataset) -> dict[str, str]:
    """Number of images without a class or a caption, which the network sees unconditionally."""
    told = []
    labels, captions = dataset.labels, dataset.captions
    if labels is not None and "label" in config.net.backbone.condition_names:
        told.append((labels >= 0) if labels.ndim == 1 else (labels != 0).any(axis=1))
    if config.text is not None and captions is not None:
        told.append(np.array([bool(texts) for texts in captions.texts]))
    count = int((~np.logical_or.reduce(told)).sum()) if told else 0
    return {"unlabeled": str(count)} if count else {}


def _class_names(config: RunConfig, dataset: ImageDataset) -> dict[str, str]:
    """Names of the classes that the network is told."""
    told = "label" in config.net.backbone.condition_names
    return names_to_metadata(dataset.class_names) if told else {}


def _normalization(config: RunConfig, dataset: ImageDataset) -> dict[str, str]:
    """How condition images were normalized, if the network is told any that were."""
    found = {
        known.name: dataclasses.asdict(known.normalization)
        for known in dataset.extra_conditions
        if known.normalization and known.name in config.net.backbone.condition_names
    }
    return {"condition_normalization": json.dumps(found)} if found else {}


def _share_untold(config: RunConfig) -> float:
    """Share of the samples that were told nothing, but for images that a ControlNet follows."""
    data, network = config.data, config.net.backbone
    followed = [control.name for control in getattr(network, "controls", None) or ()]
    names = [name for name in network.condition_names if name not in followed]
    if not names or not data.condition_dropout:
        return data.label_dropout
    apart = math.prod(data.condition_dropout.get(name, 0.0) for name in names)
    return data.label_dropout + (1 - data.label_dropout) * apart
