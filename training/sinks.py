"""The sinks of every run: ``stats.jsonl``, and what is said on stderr and in ``log.txt``."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edm2lite.atomic import replacing
from edm2lite.jsonlines import append_line, read_lines

from .config import RunConfig
from .console import LOG, Console, LogFile
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
    chosen: list[Sink] = [Console(), StatsFile()]  # warnings of the second are in the first
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


@contextlib.contextmanager
def logged(trainer: Trainer) -> Iterator[None]:
    """Within the block, before sinks have started, rank 0 writes warnings to ``RUN/log.txt`` too.

    Args:
        trainer: The trainer, whose folder is open.
    """
    if not trainer.is_main:
        yield
        return
    handler = LogFile(trainer.run_dir / LOG)
    logging.getLogger("edm2lite").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("edm2lite").removeHandler(handler)


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
