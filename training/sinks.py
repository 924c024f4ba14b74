"""The sinks of every run: ``stats.jsonl`` and the progress bar."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from edm2lite.atomic import replacing
from edm2lite.jsonlines import append_line, read_lines

from .config import RunConfig
from .sink import Sink
from .tensorboard import TensorBoard

if TYPE_CHECKING:
    from .trainer import Trainer

logger = logging.getLogger(__name__)


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


@contextlib.contextmanager
def started(trainer: Trainer) -> Iterator[None]:
    """Within the block the sinks of a trainer take what is reported; they hear whether it failed.

    Args:
        trainer: The trainer.
    """
    begun: list[Sink] = []
    failed = True
    try:
        for sink in trainer.sinks:
            sink.start(trainer)
            begun.append(sink)
        yield
        failed = False
    finally:
        for sink in begun:
            sink.close(failed=failed)


@dataclass(kw_only=True)
class StatsFile(Sink):
    """Appends every line to ``RUN/stats.jsonl``, as JSON."""

    def start(self, trainer: Trainer) -> None:
        """Drop the lines that an interrupted run will write again."""
        self._path = trainer.run_dir / "stats.jsonl"
        keep_until(self._path, trainer.nimg)

    def scalars(self, line: Mapping[str, Any]) -> None:
        """Write a line; it is on disk when this returns, before any checkpoint that follows it."""
        append_line(self._path, line)


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
    lines, notices = read_lines(path)
    for notice in notices:
        logger.warning("%s", notice)
    kept = [line for line in lines if line.get("nimg", 0) <= nimg]
    if notices or kept != lines:
        with replacing(path) as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
