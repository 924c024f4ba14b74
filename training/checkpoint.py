"""Checkpoints: everything that is needed to continue a run bit for bit.

A checkpoint is a folder ``checkpoints/<nimg>`` in the format of torch.distributed.checkpoint, with
the digest of every file in ``digests.json``. The state is copied to host memory at once and written
by a thread while training goes on: under another name, synced, digests last, then renamed.

Note [snapshots come first]: a checkpoint takes its name only after every EMA snapshot that was
queued before it is on disk. Whatever a run continues from, the snapshots before it are there.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from edm2lite.atomic import sync
from edm2lite.ema.writer import BackgroundWriter
from edm2lite.messages import one_line

from . import distributed, machine, manifest
from .staging import HostCopies

logger = logging.getLogger(__name__)

State = dict[str, Any]


class Checkpoints:
    """The checkpoints of a run, written in the background.

    Every rank creates one of these and calls its methods at the same steps.

    Args:
        folder: Folder of the checkpoints; created when the first is written.
        keep: Number of intact checkpoints that stay, the newest ones.
        check: Function that raises if this process must not write any more; called before a
            checkpoint takes its name.
    """

    def __init__(self, folder: Path, keep: int, check: Callable[[], None] = lambda: None):
        self.folder, self.keep, self._check = folder, keep, check
        self._writer = BackgroundWriter()
        self._group = distributed.host_group()
        self._copies = HostCopies()
        self._intact: set[str] = set()  # names of those read or written by this process
        self.loaded: Path | None = None
        """The checkpoint that this process continued from."""

    def save(self, nimg: int, state: State, before: Callable[[], None]) -> Path:
        """Copy ``state`` and return while ``folder/<nimg>`` is written.

        Args:
            nimg: Images seen.
            state: Nested dict of tensors and plain values, with the same keys on every rank.
            before: Function that the writing thread calls first; the checkpoint waits for it.

        Raises:
            OSError: If the checkpoint before this one could not be written.
        """
        self.flush()
        here = machine.describe()  # of this thread: another one may have its own number of threads
        self._writer.submit(partial(self._write, nimg, self._copies.of(state), before, here))
        return self.path(nimg)

    def path(self, nimg: int) -> Path:
        """Folder of the checkpoint of ``nimg`` images."""
        return self.folder / f"{nimg:012d}"

    def flush(self) -> None:
        """Wait for what is being written.

        Raises:
            OSError: If it could not be written.
        """
        self._writer.flush()

    def when_idle(self, action: Callable[[], None]) -> None:
        """Call a function once nothing is being written: now, or in the thread that writes."""
        self._writer.when_idle(action)

    def remove_abandoned(self) -> None:
        """Remove what a killed process had begun to write, on rank 0."""
        for path in self.folder.glob(".*.partial") if distributed.rank() == 0 else ():
            shutil.rmtree(path)

    def load_latest(self, make_state: Callable[[], State]) -> State | None:
        """The state in the newest intact checkpoint; None if there is no checkpoint.

        Damaged ones are reported and renamed to ``<nimg>.damaged``.

        Args:
            make_state: Function that returns a state like the saved one, whose tensors are
                overwritten.

        Raises:
            ValueError: If there are checkpoints and none of them is intact.
        """
        damaged: dict[Path, str] = {}
        for path in reversed(manifest.finished(self.folder)):
            problem = self._problem(path)
            if problem is None:
                self._archive(damaged, path)
                state = make_state()
                with _storage_errors(path), _quiet():
                    load(state, checkpoint_id=path, process_group=self._group)
                self._intact.add(path.name)
                self.loaded = path
                return state
            damaged[path] = problem
        if damaged:
            first, why = next(iter(damaged.items()))
            raise ValueError(
                f"no checkpoint in {self.folder} is intact; of {first.name}, the newest of"
                f" {len(damaged)}: {why}; restore one from a copy that you trust (a checkpoint can"
                " execute code), or remove the folder to start the run over"
            )
        return None

    def _write(
        self, nimg: int, state: State, before: Callable[[], None], here: dict[str, Any]
    ) -> None:
        before()  # Note [snapshots come first]
        final = self.path(nimg)
        token = distributed.gather(secrets.token_hex(4), self._group)[0]  # of rank 0
        temporary = self.folder / f".{final.name}.{token}.partial"
        try:
            self._write_files(temporary, state, here)
            if distributed.rank() == 0:
                self._check()
                if final.exists():
                    shutil.rmtree(final)
                os.replace(temporary, final)
                sync(self.folder)
                self._intact.add(final.name)
                self._prune()
        finally:
            if distributed.rank() == 0:
                shutil.rmtree(temporary, ignore_errors=True)

    def _write_files(self, folder: Path, state: State, here: dict[str, Any]) -> None:
        if distributed.rank() == 0:
            folder.mkdir(parents=True)
            machine.record(folder, here)
        distributed.barrier(self._group)
        with _storage_errors(folder), _quiet():
            save(state, checkpoint_id=folder, process_group=self._group)
        files = {path.name: manifest.entry(path) for path in self._own_files(folder)}
        parts = distributed.gather(files, self._group)
        if distributed.rank() == 0:
            manifest.write(folder, {name: e for part in parts for name, e in part.items()})
            for path in folder.iterdir():
                sync(path)

    def _own_files(self, folder: Path) -> list[Path]:
        """The files that this rank wrote: ``__<rank>_<i>.distcp``, and all others on rank 0."""
        rank = distributed.rank()
        return [path for path in sorted(folder.iterdir()) if _writer_of(path.name) == rank]

    def _prune(self) -> None:
        """Remove the checkpoints older than the ``keep`` newest that are known to be intact."""
        good = 0
        for path in reversed(manifest.finished(self.folder)):
            if good == self.keep:
                shutil.rmtree(path)
                continue
            if path.name not in self._intact and _problem_of(path, 0, 1) is None:
                self._intact.add(path.name)
            good += path.name in self._intact

    def _problem(self, path: Path) -> str | None:
        """What is wrong with a checkpoint; each rank reads its part of the files."""
        found = _problem_of(path, distributed.rank(), distributed.world_size())
        return next((p for p in distributed.gather(found, self._group) if p is not None), None)

    def _archive(self, damaged: dict[Path, str], used: Path) -> None:
        if distributed.rank() == 0:
            for path, why in damaged.items():
                archived = path.with_name(f"{path.name}.damaged")
                shutil.rmtree(archived, ignore_errors=True)
                os.replace(path, archived)
                logger.warning(
                    "checkpoint %s is damaged: %s; it is now %s, continuing from %s",
                    path, why, archived.name, used.name,
                )  # fmt: skip
        distributed.barrier(self._group)


def _writer_of(name: str) -> int:
    match = re.match(r"__(\d+)_", name)
    return int(match[1]) if match else 0


def _problem_of(path: Path, part: int, parts: int) -> str | None:
    """What is wrong with every ``parts``-th file of a checkpoint, from the ``part``-th on."""
    try:
        files = manifest.read(path)
        manifest.check(path, files, sorted(files)[part::parts])
    except ValueError as error:
        return str(error)
    return None


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Raise errors of torch.distributed.checkpoint as the OSError of the first rank that failed."""
    try:
        yield
    except CheckpointException as error:
        if any(isinstance(cause, KeyboardInterrupt) for cause, _ in error.failures.values()):
            raise KeyboardInterrupt from error
        rank, (cause, _) = next(iter(error.failures.items()))
        if not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__ or cause
        number = cause.errno if isinstance(cause, OSError) else errno.EIO
        reason = cause.strerror if isinstance(cause, OSError) else one_line(cause)
        raise OSError(
            number, f"checkpoint not written or read ({reason}, on rank {rank})", str(path)
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of a single process that saves alone, and of torch 2.6 about itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is .* a single process", UserWarning)
        warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)
        yield
