"""A lock file: created and locked for one process, renewed while it lives, taken over when not.

The file is locked with :func:`fcntl.lockf`, which the system takes back when the process ends,
however it ends. Where files cannot be locked, or are locked for one host alone, the file is a
lease: its holder renews it every :data:`BEAT` seconds, and one that was not renewed for
:data:`LEASE` seconds is taken over. What was taken over from a dead process is logged.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import threading
import time
from pathlib import Path

from edm2lite.claim.holder import describe, is_alive, place, read_holder, this_process

logger = logging.getLogger(__name__)

BEAT = 10.0
LEASE = 60.0


class LockFile:
    """A lock file that is this process's until :meth:`free`.

    Args:
        path: The file; its folder is created if it is missing.
        output: What it stands for, in messages.
        advice: End of the message if another process has it.

    Raises:
        ValueError: If another process has it.
        OSError: If it cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "new"
        >>> lock = LockFile(folder / ".lock", folder, "wait for it to end")
        >>> lock.is_ours(), (lock.free(), folder.exists())[1]
        (True, False)
    """

    def __init__(self, path: Path, output: Path, advice: str):
        self.path = path
        self._made = [p for p in path.parents if not p.exists()]
        self._owner, self._ended = os.getpid(), threading.Event()
        self._descriptor = self._acquire(output, advice)
        threading.Thread(target=self._renew, daemon=True).start()

    def is_ours(self) -> bool:
        """Whether nobody took it over, as happens to a lease when its host stood still."""
        return not self._ended.is_set() and _is_file(self._descriptor, self.path)

    def free(self) -> None:
        """Let others write; in a forked child, which has nothing to free, only forget.

        Folders that were created for the file are removed if nothing else is in them.
        """
        is_ours = self._owner == os.getpid() and self.is_ours()
        self._ended.set()
        if is_ours:
            self.path.unlink()
            with contextlib.suppress(OSError):
                for folder in self._made:
                    folder.rmdir()
        os.close(self._descriptor)

    def _renew(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):
                if self.is_ours():
                    os.utime(self.path)

    def _acquire(self, output: Path, advice: str) -> int:
        """A descriptor of the file, which from now on is this process's."""
        here = place()
        while True:
            descriptor, is_new = _open(self.path)
            try:
                locked = _lock(descriptor)
                if not _is_file(descriptor, self.path):
                    continue  # its holder has just removed it
                holder = read_holder(descriptor)
                if locked is False or not (is_new or _ended(self.path, descriptor, locked, here)):
                    raise ValueError(
                        f"{output} must be written by one process at a time, {describe(holder)}"
                        f" writes to it now; {advice}"
                    )
                if holder and _is_file(descriptor, self.path):
                    logger.warning("%s: %s ended while it wrote there", output, describe(holder))
                if not is_new and (locked is None or holder.get("place", here) != here):
                    _set_aside(self.path, descriptor)  # whoever creates the next one has it
                elif _is_file(descriptor, self.path):
                    _write(descriptor)
                    kept, descriptor = descriptor, -1
                    return kept
            finally:
                if descriptor >= 0:
                    os.close(descriptor)


def _open(lock: Path) -> tuple[int, bool]:
    """The lock file, opened, and whether this created it."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # its holder removed it, or the folder
            try:
                return os.open(lock, flags | os.O_CREAT | os.O_EXCL, 0o666), True
            except FileExistsError:
                return os.open(lock, flags), False


def _lock(descriptor: int) -> bool | None:
    """Lock the file for this process: True, False if another one has it, None if files cannot be.

    Unlike those of ``flock``, such locks work across NFS and are not inherited by children, which
    may live on when this process is killed.
    """
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def _write(descriptor: int) -> None:
    """Say who holds the file; on a full disk, where room is to be made, the lock has to do."""
    os.ftruncate(descriptor, 0)
    try:
        record = {**this_process(), "inode": os.fstat(descriptor).st_ino}
        os.pwrite(descriptor, json.dumps(record).encode(), 0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise


def _ended(lock: Path, descriptor: int, locked: bool | None, here: str) -> bool:
    """Whether the holder of a lock file has ended, for all that its lock does not say."""
    holder = read_holder(descriptor)
    if locked and not holder:
        return True  # who creates a file locks it first
    alive = is_alive(holder, here)
    if alive is not None:
        return not alive or holder["pid"] == os.getpid()
    seen = os.fstat(descriptor).st_mtime
    if _now(lock.parent) - seen < LEASE:
        logger.warning("%s: waiting up to %.0f s to see if %s lives", lock, LEASE, describe(holder))
    while _now(lock.parent) - seen < LEASE:
        if os.fstat(descriptor).st_mtime != seen:
            return False
        time.sleep(BEAT / 5)
    return True


def _now(folder: Path) -> float:
    """The time by the clock that stamps files in a folder, which may be a server's."""
    probe = folder / f".{secrets.token_hex(4)}.clock"
    try:
        probe.touch(exist_ok=False)
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _set_aside(lock: Path, judged: int) -> None:
    """Remove the lock file that was judged, and not one that took its place meanwhile."""
    if not _is_file(judged, lock):
        return
    aside = lock.with_name(f"{lock.name}.{secrets.token_hex(4)}")
    try:
        os.rename(lock, aside)
    except FileNotFoundError:
        return
    if not _is_file(judged, aside):
        with contextlib.suppress(FileExistsError):
            os.link(aside, lock)
    aside.unlink()


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
