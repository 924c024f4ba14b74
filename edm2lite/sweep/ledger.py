"""The ledger of a sweep: what has been measured is never measured again.

Each measurement is one JSON line under a key that holds everything the value depends on, and one
small file with the influences of the images, which intervals come from. The file is written first.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from edm2lite.atomic import replacing, sync
from edm2lite.metrics.moments import Array
from edm2lite.sweep.cells import Cell
from edm2lite.tensorfile import load_tensors, save_tensors

LEDGER = "sweep.jsonl"
"""Name of the file of measurements."""


@dataclass(frozen=True)
class Setting:
    """What every measurement of a sweep has in common.

    Attributes:
        metric: The ``record_name`` of the metric.
        run: Identifier of the training run.
        protocol: Everything else: sampling, extractor, reference, guide, data.
    """

    metric: str
    run: str
    protocol: dict[str, Any]

    def measures_like(self, other: Setting) -> bool:
        """Whether both are of one metric, in the features of one extractor if of any."""
        pairs = [(s.metric, s.protocol.get("extractor")) for s in (self, other)]
        return pairs[0] == pairs[1]


@dataclass(frozen=True)
class Result:
    """A measured cell.

    Attributes:
        value: Value of the metric.
        gamma: Exponent of the average, None for the raw weights.
        predicted_error: Predicted error of the average, 0 for the raw weights.
        details: Further numbers by name, such as the loss at each noise level.
    """

    value: float
    gamma: float | None
    predicted_error: float
    details: dict[str, float]


class Ledger:
    """Measurements in ``folder/sweep.jsonl`` and ``folder/spread/``.

    Args:
        folder: Folder of the ledger; a last line that an interruption cut short is dropped.
        writer: Whether this process writes; others read what it writes.

    Raises:
        ValueError: If the file is of another version.

    Example:
        >>> import tempfile
        >>> setting, cell = Setting("fid", "a1b2", {"num_steps": 12}), Cell(0.1, 1024)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Ledger(Path(folder)).add(setting, cell, 300, Result(2.5, 6.9, 1e-3, {}), None)
        ...     Ledger(Path(folder)).get(setting, cell, 300).value
        2.5
    """

    def __init__(self, folder: Path, writer: bool = True):
        self.folder, self.path = folder, folder / LEDGER
        self.first: Setting | None = None
        """The setting of the first measurement."""
        self._results: dict[str, Result] = {}
        self._read_to = 0
        tail = self._read()
        if tail and writer:
            with replacing(self.path) as file:
                file.write("".join(f"{line}\n" for line in self._lines))

    def _read(self) -> str:
        """Take in new lines; returns what follows the last newline."""
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        *self._lines, tail = text.split("\n") if text else [""]
        for line in self._lines[self._read_to :]:
            entry = json.loads(line)
            if entry.get("format") != 2:
                raise ValueError(
                    f"{self.path} must be a ledger of this version, it is of another; move it away"
                )
            setting = Setting(**entry["setting"])
            self.first = self.first or setting
            key = key_of(setting, Cell(**entry["cell"]), entry["num"])
            self._results[key] = Result(**entry["result"])
        self._read_to = len(self._lines)
        return tail

    def get(self, setting: Setting, cell: Cell, num: int) -> Result | None:
        """The result, if the cell has been measured on ``num`` images under this setting."""
        key = key_of(setting, cell, num)
        return self._results.get(key) if self._spread(key).is_file() else None

    def wait(self, setting: Setting, cell: Cell, num: int) -> Result:
        """The result, once another process has added it."""
        while (result := self.get(setting, cell, num)) is None:
            time.sleep(0.02)
            self._read()
        return result

    def influences(self, setting: Setting, cell: Cell, num: int) -> Array | None:
        """[J, num], see :mod:`edm2lite.metrics.influence`; None if the metric has none."""
        spread = load_tensors(self._spread(key_of(setting, cell, num)))[0]["spread"].numpy()
        return spread if len(spread) else None

    def add(
        self, setting: Setting, cell: Cell, num: int, result: Result, influences: Array | None
    ) -> None:
        """Record a measurement, on disk before this returns.

        Args:
            setting: What it has in common with the others.
            cell: The setting that was measured.
            num: Number of images.
            result: The value, and further numbers.
            influences: [J, num], or None if the metric has none.
        """
        key = key_of(setting, cell, num)
        spread = np.zeros((0, num)) if influences is None else influences
        save_tensors(self._spread(key), {"spread": torch.from_numpy(spread)}, {"key": key})
        entry = {
            "format": 2, "setting": asdict(setting), "cell": asdict(cell), "num": num,
            "result": asdict(result),
        }  # fmt: skip
        if key not in self._results:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
            sync(self.path)
        self._results[key] = result
        self.first = self.first or setting

    def keep_images(self, setting: Setting, cell: Cell, num: int, images: Tensor) -> None:
        """Keep the first images of a cell for people to look at."""
        path = self._spread(key_of(setting, cell, num)).with_suffix(".images.safetensors")
        save_tensors(path, {"images": images}, {})

    def images(self, setting: Setting, cell: Cell, num: int) -> NDArray[np.uint8] | None:
        """The images that were kept of a cell, [n, C, H, W], or None."""
        path = self._spread(key_of(setting, cell, num)).with_suffix(".images.safetensors")
        return load_tensors(path)[0]["images"].numpy() if path.is_file() else None

    def _spread(self, key: str) -> Path:
        return self.folder / "spread" / f"{xxhash.xxh3_64_hexdigest(key.encode())}.safetensors"


def key_of(setting: Setting, cell: Cell, num: int) -> str:
    """Text that identifies a measurement."""
    return json.dumps([asdict(setting), asdict(cell), num], sort_keys=True)
