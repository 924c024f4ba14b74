"""Snapshots of all averages of one moment, written now or by a thread while training goes on."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edm2lite.ema.profile import PowerFunction
from edm2lite.ema.snapshot import refuse_other_runs, snapshot_path, write_snapshot
from edm2lite.ema.source import is_sharded, on_host, writes_files

logger = logging.getLogger(__name__)

Job = Callable[[], object]


class BackgroundWriter:
    """Runs jobs in a thread of its own, strictly in the order given.

    A failure stops the line and is raised by the next :meth:`flush`. A job that the system failed
    (OSError: disk full, folder gone) then still stands first and the next call tries it again, so
    that nothing is lost or overtaken; a job that is itself wrong is dropped. The thread lives only
    while there is work, and a normal interpreter exit waits for it.
    """

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def submit(self, job: Job) -> None:
        """Queue a job; returns at once. It waits while an error is to be raised."""
        with self._changed:
            self._jobs.append(job)
            self._start()

    def flush(self) -> None:
        """Return when every job is done.

        Raises:
            Exception: Whatever stopped a job, once; call again to go on with the jobs left.
        """
        with self._changed:
            self._start()
            self._changed.wait_for(lambda: self._thread is None)
            error, self._error = self._error, None
        if error is not None:
            raise error

    def _start(self) -> None:
        if self._jobs and self._thread is None and self._error is None:
            self._thread = threading.Thread(target=self._run, name="ema-writer", daemon=False)
            self._thread.start()

    def _run(self) -> None:
        while True:
            job = self._jobs[0]  # only this thread removes jobs
            try:
                job()
                error = None
            except Exception as caught:  # handed to the caller of flush, whatever it is
                error = caught
                logger.warning("a file was not written, the next call raises this: %s", error)
            with self._changed:
                if not isinstance(error, OSError):
                    self._jobs.popleft()
                self._error = error
                if error is not None or not self._jobs:
                    self._thread = None
                    self._changed.notify_all()
                    return


class SnapshotSaver:
    """Saves averages to folders that belong to one run."""

    def __init__(self) -> None:
        self.writer = BackgroundWriter()
        self._own: set[tuple[Path, str]] = set()

    def save(
        self,
        folder: Path,
        averages: Iterable[tuple[float, PowerFunction, Mapping[str, Tensor]]],
        *,
        run: str,
        dtype: torch.dtype,
        background: bool,
        **details: Any,
    ) -> list[Path]:
        """Write (sigma_rel, profile, tensors) each to its file, after all that were queued before.

        Raises:
            ValueError, OSError: As :func:`write_snapshot`; or ``folder`` is of another run.
        """
        self.writer.flush()
        jobs, paths = [], []
        for sigma_rel, profile, tensors in averages:
            writes = writes_files(tensors.values())
            if writes and (folder, run) not in self._own:
                refuse_other_runs(folder, run)
                self._own.add((folder, run))
            if background or any(is_sharded(t) for t in tensors.values()):
                tensors = on_host(tensors, dtype, keep=writes)
            details |= {"run": run, "profile": profile, "sigma_rel": sigma_rel, "dtype": dtype}
            if writes:
                jobs.append(partial(write_snapshot, folder, tensors, **details))
            paths.append(snapshot_path(folder, sigma_rel, profile.nimg))
        for job in jobs:  # after all are gathered: no rank is left waiting for one that failed
            if background:
                self.writer.submit(job)
            else:
                job()
        return paths
