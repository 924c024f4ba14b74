"""The ledger of a sweep: what has been measured is never measured again.

Each measurement is one JSON line under a key that holds everything the value depends on, and one
small file with the influences of the images, which intervals come from. The file is written first.
A line carries a digest of all that it says, and a file names its key: what is damaged, or lies in
the place of another, is said and measured again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from edm2lite.atomic import replacing
from edm2lite.jsonlines import append_line, read_lines
from edm2lite.metrics.moments import Array
from edm2lite.strict_json import parse_object
from edm2lite.sweep.cells import Cell
from edm2lite.tensorfile import load_tensors, read_header, save_tensors

logger = logging.getLogger(__name__)

FORMAT = 3
"""Of the lines that are written. Lines of format 2, of versions up to 0.3, have no digest."""
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
        folder: Folder of the ledger; lines that are damaged are dropped with a warning.
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
        self._sound: set[str] = set()  # keys whose files were looked at
        self._warned: set[Path] = set()
        self._read_at: tuple[int, ...] = ()  # what told this version of the file from others
        entries, notices = self._read()
        if notices and writer:
            for notice in notices:
                logger.warning("%s; what it held is measured again", notice)
            with replacing(self.path) as file:
                file.writelines(json.dumps(entry) + "\n" for entry in entries)

    def _read(self) -> tuple[list[dict[str, Any]], list[str]]:
        """Take in the lines if there are new ones; returns the whole ones, and what was wrong."""
        if not self.path.exists():
            return [], []
        state = self.path.stat()
        version = state.st_ino, state.st_size, state.st_mtime_ns
        if version == self._read_at:
            return [], []
        self._read_at = version
        lines, notices = read_lines(self.path)
        entries = [entry for entry in lines if self._take(entry)]
        if len(entries) < len(lines):
            number = len(lines) - len(entries)
            what = "1 line does" if number == 1 else f"{number} lines do"
            notices.append(f"{self.path}: {what} not match the digest in it")
        return entries, notices

    def _take(self, entry: dict[str, Any]) -> bool:
        """Take in a line; False if it is damaged."""
        version, digest = entry.get("format"), entry.get("digest")
        is_sound = digest == _digest(entry) if digest else version == 2
        if not is_sound and (digest or version == FORMAT):
            return False
        if version not in (2, FORMAT):
            raise ValueError(
                f"{self.path} must be a ledger of this version, it is of another; move it away"
            )
        try:
            setting, cell = Setting(**entry["setting"]), Cell(**entry["cell"])
            result = Result(**entry["result"])
        except (KeyError, TypeError):  # a line of format 2, of which nobody knows what it was
            return False
        self.first = self.first or setting
        self._results[key_of(setting, cell, entry["num"])] = result
        return True

    def get(self, setting: Setting, cell: Cell, num: int) -> Result | None:
        """The result, if the cell has been measured on ``num`` images under this setting."""
        key = key_of(setting, cell, num)
        result = self._results.get(key)
        if result is None or not self._spread(key).is_file():
            return None
        if key not in self._sound:
            if self._load(self._spread(key), key) is None:
                return None
            self._sound.add(key)
        return result

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
            "format": FORMAT, "setting": asdict(setting), "cell": cell.settings, "num": num,
            "result": asdict(result),
        }  # fmt: skip
        if self._results.get(key) != result:
            append_line(self.path, {**entry, "digest": _digest(entry)})
        self._results[key] = result
        self._sound.add(key)
        self.first = self.first or setting

    def keep_images(
        self,
        setting: Setting,
        cell: Cell,
        num: int,
        images: Tensor,
        titles: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Keep the first images of a cell for people to look at.

        Args:
            setting: What the measurement has in common with others.
            cell: The setting that was measured.
            num: Number of images of the measurement.
            images: First images of the point, uint8 [n, C, H, W].
            titles: What each of them shows, under ``classes`` or ``captions``.
        """
        key = key_of(setting, cell, num)
        metadata = {"key": key, "titles": json.dumps(titles or {})}
        save_tensors(self._images(key), {"images": images}, metadata)

    def images(self, setting: Setting, cell: Cell, num: int) -> NDArray[np.uint8] | None:
        """The images that were kept of a cell, [n, C, H, W], or None."""
        key = key_of(setting, cell, num)
        found = self._load(self._images(key), key) if self._images(key).is_file() else None
        return None if found is None else found["images"].numpy()

    def titles(self, setting: Setting, cell: Cell, num: int) -> dict[str, list[str]]:
        """What each of the images that were kept of a cell shows; see :meth:`keep_images`.

        Nothing is known of files of versions before 0.7 or damaged ones, which are said, nor of a
        model that is told neither.
        """
        key = key_of(setting, cell, num)
        path = self._images(key)
        if not path.is_file() or self._load(path, key) is None:
            return {}
        return parse_object(read_header(path).metadata.get("titles", "{}"))

    def _load(self, path: Path, key: str) -> dict[str, Tensor] | None:
        """The tensors of a file that belongs to a key; None if it is damaged, said once."""
        try:
            tensors, metadata = load_tensors(path)
            if metadata.get("key", key) == key:
                return tensors
            problem = f"{path} belongs to another measurement"
        except ValueError as error:
            problem = str(error)
        if path not in self._warned:
            logger.warning("%s; what belongs to it is measured again", problem)
            self._warned.add(path)
        return None

    def _spread(self, key: str) -> Path:
        return self.folder / "spread" / f"{xxhash.xxh3_64_hexdigest(key.encode())}.safetensors"

    def _images(self, key: str) -> Path:
        return self._spread(key).with_suffix(".images.safetensors")


def _digest(entry: dict[str, Any]) -> str:
    """Digest of all that a line says but the digest itself."""
    content = {name: value for name, value in entry.items() if name != "digest"}
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def key_of(setting: Setting, cell: Cell, num: int) -> str:
    """Text that identifies a measurement."""
    return json.dumps([asdict(setting), cell.settings, num], sort_keys=True)
