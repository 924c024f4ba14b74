"""Writes the snapshots of all averages of one moment, at once or in a background thread."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from edm2lite.claim import Claim, claim_folder
from edm2lite.ema import stale
from edm2lite.ema.course import Course, link_text
from edm2lite.ema.folder import snapshots_of_run
from edm2lite.ema.profile import PowerFunction
from edm2lite.ema.shards import gather, is_sharded, is_writer
from edm2lite.ema.snapshot import SnapshotInfo, snapshot_path, write_snapshot
from edm2lite.tensorfile import read_header

logger = logging.getLogger(__name__)

_ADVICE = (
    "wait for it to end, or, in a loop of your own with several ranks, call save_snapshots() on"
    " rank 0 alone"
)

Job = Callable[[], object]


_writers: WeakSet[BackgroundWriter] = WeakSet()


def _in_forked_child() -> None:
    """A forked process has no thread that writes; what was on its way is its parent's to write."""
    for writer in _writers:
        writer._reset()


def _at_exit() -> None:
    for writer in _writers:
        writer.report_unwritten()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)
atexit.register(_at_exit)  # runs once the threads have ended


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
        self._reset()
        _writers.add(self)

    def _reset(self) -> None:
        self._jobs: deque[Job] = deque()
        self._when_idle: list[Job] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def report_unwritten(self) -> None:
        """Log what can no longer be written, because the program ends."""
        if self._jobs or self._error is not None:
            logger.error(
                "the program ends with %d files not written (%s); call flush() before it does",
                len(self._jobs),
                self._error,
            )

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

    def when_idle(self, action: Job) -> None:
        """Call a function once no job runs: now, or in the thread when it has run the last one."""
        with self._changed:
            self._when_idle.append(action)
            if self._thread is None:
                self._end_of_work()

    def _end_of_work(self) -> None:
        actions, self._when_idle = self._when_idle, []
        for action in actions:
            action()

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
                    self._end_of_work()
                    self._thread = None
                    self._changed.notify_all()
                    return


class SnapshotSaver:
    """Saves averages to folders, each of which belongs to one run.

    Attributes:
        writer: The background thread.
        lock: Held while averages change or are copied, so that a snapshot is of one moment.

    Example:
        >>> import tempfile
        >>> saver, profile = SnapshotSaver(), PowerFunction.of_width(0.10, nimg=64)
        >>> paths = saver.save(
        ...     Path(tempfile.mkdtemp()), [(0.10, profile, {"w": torch.ones(3)})],
        ...     course=Course("a1", 0, [(64, 1)], [profile.gamma]),
        ...     dtype=torch.float32, background=False, extra={},
        ... )
        >>> paths[0].name
        'ema-0.10000-0000000064.safetensors'
    """

    def __init__(self) -> None:
        self.writer = BackgroundWriter()
        self.lock = threading.RLock()
        self._folders: dict[Path, _Folder] = {}

    def __reduce__(self) -> tuple[type[SnapshotSaver], tuple[()]]:
        return SnapshotSaver, ()  # a copy has a thread of its own

    def claim(self, folder: Path, course: Course, nimg: int) -> None:
        """Make a folder ready for the snapshots of a run, unless this was done before.

        Those in it that are later than ``nimg`` are archived, and archived ones of the same course
        that are not come back: see :mod:`edm2lite.ema.stale`.

        Args:
            folder: Folder of the snapshots. It is created if missing.
            course: What the run has done so far.
            nimg: Image count at which the run began or from which it continues.

        Raises:
            ValueError: If the folder holds snapshots of another run, or another process writes
                to it.
        """
        if folder in self._folders:
            return
        claimed = claim_folder(folder, _ADVICE)
        try:
            infos = snapshots_of_run(folder, course.run)
            stale.archive(folder, nimg, course.gammas)
            remaining = [info for info in infos if info.path.exists()]
            remaining += stale.bring_back(folder, nimg, course, remaining)
        except BaseException:
            claimed.release()
            raise
        self._folders[folder] = _Folder(folder, claimed, remaining)

    def forget(self) -> None:
        """Examine every folder anew before the next snapshot: the run continues elsewhere."""
        self.writer.flush()
        self.release()

    def release(self) -> None:
        """Let other processes write to the folders, once nothing is being written to them."""
        self.writer.when_idle(self._release)

    def _release(self) -> None:
        folders, self._folders = self._folders, {}
        for folder in folders.values():
            folder.claimed.release()

    def save(
        self,
        folder: Path,
        averages: Iterable[tuple[float, PowerFunction, Mapping[str, Tensor]]],
        *,
        course: Course,
        begin: int = 0,
        dtype: torch.dtype,
        background: bool,
        extra: Mapping[str, str],
    ) -> list[Path]:
        """Write each average to its file, after all that were queued before.

        Args:
            folder: Folder of the snapshots. It is created if missing.
            averages: (sigma_rel, profile, tensors) of each average.
            course: What the run has done so far.
            begin: Image count at which the run began or from which it continues.
            dtype: Stored floating-point type.
            background: Whether a thread writes while this returns.
            extra: Further metadata.

        Returns:
            The files.

        Raises:
            ValueError: If ``folder`` holds snapshots of another run, another process writes to
                it, or a tensor is not finite.
            OSError: If a file cannot be written.
        """
        self.writer.flush()
        jobs: list[Job] = []
        paths = []
        for sigma_rel, profile, tensors in averages:
            writes = is_writer(tensors.values())
            if writes:
                self.claim(folder, course, begin)
            if background or any(is_sharded(t) for t in tensors.values()):
                tensors = gather(tensors, dtype, keep=writes)
            if writes:
                write = partial(self._folders[folder].write, tensors, run=course.run)
                details = {"profile": profile, "sigma_rel": sigma_rel, "dtype": dtype}
                when = {"history": course.history, "start_nimg": course.start_nimg}
                jobs.append(partial(write, extra=extra, **details, **when))
            paths.append(snapshot_path(folder, sigma_rel, profile.nimg))
        for job in jobs:  # only now: a job that fails must not leave other ranks waiting to gather
            if background:
                self.writer.submit(job)
            else:
                job()
        return paths


class _Folder:
    """A folder of snapshots as this run finds and extends it.

    Every snapshot names the one of its length before it, so that files of two courses of a run,
    which have the same identifier, cannot be taken for one (:mod:`edm2lite.ema.course`).
    """

    def __init__(self, path: Path, claimed: Claim, infos: Sequence[SnapshotInfo]):
        self.path, self.claimed = path, claimed
        self._digests: dict[float, dict[int, str]] = defaultdict(dict)  # by exponent and time
        for info in infos:
            self._digests[info.gamma][info.nimg] = str(info.header.digest)

    def write(
        self,
        tensors: Mapping[str, Tensor],
        *,
        profile: PowerFunction,
        extra: Mapping[str, str],
        **details: Any,
    ) -> None:
        """Write one average; see :func:`edm2lite.ema.snapshot.write_snapshot`."""
        self.claimed.check()
        known = self._digests[profile.gamma]
        before = max((nimg for nimg in known if nimg < profile.nimg), default=None)
        if before is not None:
            extra = {**extra, "previous": link_text(before, known[before])}
        path = write_snapshot(self.path, tensors, profile=profile, extra=extra, **details)
        known[profile.nimg] = str(read_header(path).digest)
