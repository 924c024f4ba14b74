"""Writes the snapshots of all averages of one moment, at once or in a background thread."""

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

from edm2lite.ema.folder import refuse_other_runs
from edm2lite.ema.profile import PowerFunction
from edm2lite.ema.shards import gather, is_sharded, is_writer
from edm2lite.ema.snapshot import snapshot_path, write_snapshot

logger = logging.getLogger(__name__)

Job = Callable[[], object]


class BackgroundWriter:
    """Runs jobs in a thread of its own, strictly in the order in which they were submitted.

    A failure stops the queue and is raised by the next :meth:`flush`. A job that failed with an
    OSError (disk full, folder gone) stays first in the queue and is tried again afterwards, so that
    nothing is lost or overtaken. A job that failed otherwise is dropped. The thread lives only
    while there is work, and a normal exit of the interpreter waits for it.

    Example:
        >>> writer, done = BackgroundWriter(), []
        >>> for i in range(3):
        ...     writer.submit(lambda i=i: done.append(i))
        >>> writer.flush()
        >>> done
        [0, 1, 2]
    """

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def submit(self, job: Job) -> None:
        """Queue a job and return at once. The job is not started before an error is raised."""
        with self._changed:
            self._jobs.append(job)
            self._start()

    def flush(self) -> None:
        """Wait until every job is done.

        Raises:
            Exception: If a job raised it. Call again to continue with the remaining jobs.
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
    """Saves averages to folders, each of which belongs to one run.

    Attributes:
        writer: The background thread.

    Example:
        >>> import tempfile
        >>> saver, profile = SnapshotSaver(), PowerFunction.of_width(0.10, nimg=64)
        >>> paths = saver.save(
        ...     Path(tempfile.mkdtemp()), [(0.10, profile, {"w": torch.ones(3)})], run="a1",
        ...     dtype=torch.float32, background=False, history=[(64, 1)], start_nimg=0, extra={},
        ... )
        >>> paths[0].name
        'ema-0.10000-0000000064.safetensors'
    """

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
        """Write each average to its file, after all that were queued before.

        Args:
            folder: Folder of the snapshots. It is created if missing.
            averages: (sigma_rel, profile, tensors) of each average.
            run: Identifier of the run.
            dtype: Stored floating-point type.
            background: Whether a thread writes while this returns.
            details: Further arguments of :func:`edm2lite.ema.snapshot.write_snapshot`.

        Returns:
            The files.

        Raises:
            ValueError: If ``folder`` holds snapshots of another run, or a tensor is not finite.
            OSError: If a file cannot be written.
        """
        self.writer.flush()
        jobs, paths = [], []
        for sigma_rel, profile, tensors in averages:
            writes = is_writer(tensors.values())
            if writes and (folder, run) not in self._own:
                refuse_other_runs(folder, run)
                self._own.add((folder, run))
            if background or any(is_sharded(t) for t in tensors.values()):
                tensors = gather(tensors, dtype, keep=writes)
            details |= {"run": run, "profile": profile, "sigma_rel": sigma_rel, "dtype": dtype}
            if writes:
                jobs.append(partial(write_snapshot, folder, tensors, **details))
            paths.append(snapshot_path(folder, sigma_rel, profile.nimg))
        for job in jobs:  # only now: a job that fails must not leave other ranks waiting to gather
            if background:
                self.writer.submit(job)
            else:
                job()
        return paths
