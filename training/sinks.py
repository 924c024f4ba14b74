"""The sinks of every run: ``stats.jsonl`` and the progress bar."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from edm2lite.atomic import replacing

from .config import RunConfig
from .sink import Sink
from .tensorboard import TensorBoard

if TYPE_CHECKING:
    from .trainer import Trainer


def all_sinks(config: RunConfig, more: Sequence[Sink] = ()) -> list[Sink]:
    """The sinks of a run, in the order in which they are called.

    Those of the configuration are copied: two runs may share a configuration.

    Args:
        config: Configuration of the run.
        more: Further sinks.
    """
    chosen: list[Sink] = [StatsFile(), ProgressBar()]
    chosen += [TensorBoard()] if config.tensorboard else []
    chosen += [] if config.wandb is None else [copy.copy(config.wandb)]
    return [*chosen, *map(copy.copy, config.sinks), *more]


@dataclass(kw_only=True)
class StatsFile(Sink):
    """Appends every line to ``RUN/stats.jsonl``, as JSON."""

    def start(self, trainer: Trainer) -> None:
        """Drop the lines that an interrupted run will write again."""
        self._path = trainer.run_dir / "stats.jsonl"
        keep_until(self._path, trainer.nimg)

    def scalars(self, line: Mapping[str, Any]) -> None:
        """Write a line at once."""
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


@dataclass(kw_only=True)
class ProgressBar(Sink):
    """Shows on stderr how many images have been seen, how fast, and the latest loss."""

    def start(self, trainer: Trainer) -> None:
        """Show the bar where the run continues."""
        self._bar = tqdm(
            total=trainer.config.total_nimg,
            initial=trainer.nimg,
            unit="img",
            unit_scale=True,
            desc="train",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 10,
        )

    def advance(self, nimg: int) -> None:
        """Move the bar."""
        self._bar.update(nimg - self._bar.n)

    def scalars(self, line: Mapping[str, Any]) -> None:
        """Show the loss."""
        if line.get("loss") is not None:
            self._bar.set_postfix(loss=f"{line['loss']:.4f}", refresh=False)

    def close(self, *, failed: bool) -> None:
        """Leave the bar as it is."""
        self._bar.close()


def keep_until(path: Path, nimg: int) -> None:
    """Drop the lines of a JSON-lines file that are later than ``nimg`` images, or cut short.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "stats.jsonl"
        >>> _ = path.write_text('{"nimg": 64}' + chr(10) + '{"nimg": 128}' + chr(10) + '{"ni')
        >>> keep_until(path, 64)
        >>> path.read_text()
        '{"nimg": 64}\\n'
    """
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["nimg"] <= nimg]
    if kept != lines:
        with replacing(path) as file:
            file.writelines(line + "\n" for line in kept)
