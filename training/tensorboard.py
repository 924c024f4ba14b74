"""The figures of a run for TensorBoard: the same as in ``stats.jsonl``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Board:
    """Writes scalars and pictures over images seen.

    Args:
        folder: Of the event files.
        nimg: Where the run continues; later events of an interrupted run are hidden.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, nimg: int):
        self._writer = _writer_class()(str(folder), purge_step=nimg + 1)

    def add(self, line: Mapping[str, Any]) -> None:
        """Every figure of a tick; one curve for each noise level of a list."""
        nimg = line["nimg"]
        for name, value in line.items():
            if isinstance(value, list):
                for level, item in zip(line["ln_sigma"], value, strict=True):
                    if name != "ln_sigma" and item is not None:
                        self._writer.add_scalar(f"{name}/ln_sigma {level:+.2f}", item, nimg)
            elif isinstance(value, Mapping):
                for key, item in value.items():
                    self._writer.add_scalar(f"{name}/{key}", item, nimg)
            elif value is not None and name != "nimg":
                self._writer.add_scalar(name, value, nimg)
        self._writer.flush()

    def add_picture(self, name: str, picture: NDArray[np.uint8], nimg: int) -> None:
        """[H, W, C] uint8."""
        self._writer.add_image(name, picture, nimg, dataformats="HWC")

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


def check_installed() -> None:
    """Raise ImportError, saying what to install, unless TensorBoard is."""
    _writer_class()


def _writer_class() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "tensorboard: true needs TensorBoard; pip install 'edm2lite[tensorboard]'"
        ) from error
    return SummaryWriter
