"""TensorBoard as a sink: the numbers of ``stats.jsonl`` and the pictures, over images seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .sink import Sink, flat

if TYPE_CHECKING:
    from .trainer import Trainer


@dataclass(kw_only=True)
class TensorBoard(Sink):
    """Writes event files to ``RUN/tensorboard``; later events of an interrupted run are hidden."""

    kind: Literal["tensorboard"] = "tensorboard"

    def check(self) -> None:
        """Raise ImportError, saying what to install, unless TensorBoard is installed."""
        _writer_class()

    def start(self, trainer: Trainer) -> None:
        """Begin an event file that replaces what is later than the run's image count."""
        folder = trainer.run_dir / "tensorboard"
        self._writer = _writer_class()(str(folder), purge_step=trainer.nimg + 1)

    def scalars(self, line: Mapping[str, Any]) -> None:
        """Add every number of a line; a list becomes one curve per noise level."""
        for name, value in flat(line):
            self._writer.add_scalar(name, value, line["nimg"])
        self._writer.flush()

    def picture(self, name: str, picture: NDArray[np.uint8], nimg: int) -> None:
        """Add a picture [H, W, C] uint8."""
        self._writer.add_image(name, picture, nimg, dataformats="HWC")

    def close(self, *, failed: bool) -> None:
        """Flush and close the event file."""
        self._writer.close()


def _writer_class() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "tensorboard: true needs TensorBoard; pip install 'edm2lite[tensorboard]'"
        ) from error
    return SummaryWriter
