"""One writer for an output: a lock file that says which process writes there, and since when.

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
import socket
import sys
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from weakref import WeakValueDictionary, finalize

logger = logging.getLogger(__name__)

BEAT = 10.0
LEASE = 60.0

_held: WeakValueDictionary[Path, Claim] = WeakValueDictionary()
_claiming = threading.RLock()


class Claim:
    """The right of this process to write one output; :func:`claim_folder`, :func:`claim_file`.

    It lasts until :meth:`release`, until the block of a ``with`` statement ends, or as long as the
    object lives. Claims of one process on one output are the same object, and each of them has to
    be released. Processes that are forked meanwhile do not hold it.

    Attributes:
        path: The lock file.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with claim_folder(folder) as mine:
        ...     mine.path.name, claim_folder(folder) is mine
        ('.lock', True)
    """

    def __init__(self, path: Path, output: Path, advice: str):
        self.path = path
        self.users = 0
        self._descriptor = _acquire(path, output, advice)
        self._ended = threading.Event()
        self._free = finalize(self, _free, os.getpid(), path, self._descriptor, self._ended)
        threading.Thread(
            target=_beat, args=(path, self._descriptor, self._ended), daemon=True
        ).start()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def check(self) -> None:
        """See that nobody took this over, as happens to a lease when its host stood still.

        Raises:
            ValueError: If somebody did; nothing more may be written then.
        """
        if not _is_file(self._descriptor, self.path):
            raise ValueError(
                f"{self.path} must belong to this process while it writes, another process took"
                " it over; this one writes nothing more: see that only one of them runs"
            )

    def release(self) -> None:
        """Give one claim back; others may write when the last one is."""
        with _claiming:
            self.users -= 1
            if self.users == 0:
                _held.pop(self.path, None)
                self._free()


def claim_folder(folder: Path, advice: str = "wait for it to end, or choose another") -> Claim:
    """Claim a folder, which is created if it is missing, by a file ``.lock`` in it.

    Args:
        folder: Folder that this process is about to write to.
        advice: End of the message if it cannot.

    Raises:
        ValueError: If another process writes to it.
        OSError: If the lock file cannot be written.

    Example:
        >>> import os, tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with claim_folder(folder):
        ...     os.listdir(folder)
        ['.lock']
        >>> os.listdir(folder)
        []
    """
    folder.mkdir(parents=True, exist_ok=True)
    return _claim(folder.resolve() / ".lock", folder, advice)


def claim_file(path: Path, advice: str = "wait for it to end, or choose another") -> Claim:
    """Claim a file, or a folder that appears complete, by a file ``.NAME.lock`` beside it.

    Args:
        path: What this process is about to write; it need not exist.
        advice: End of the message if it cannot.

    Raises:
        ValueError: If another process writes it.
        OSError: If the lock file cannot be written.

    Example:
        >>> import tempfile
        >>> with claim_file(Path(tempfile.mkdtemp()) / "images.zip") as mine:
        ...     mine.path.name
        '.images.zip.lock'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.resolve()
    return _claim(whole.with_name(f".{whole.name}.lock"), path, advice)


def _claim(lock: Path, output: Path, advice: str) -> Claim:
    with _claiming:
        found = _held.get(lock)
        if found is None:
            found = _held[lock] = Claim(lock, output, advice)
        found.users += 1
        return found


def _acquire(lock: Path, output: Path, advice: str) -> int:
    """A descriptor of the lock file, which from now on is this process's."""
    while True:
        descriptor, is_new = _open(lock)
        try:
            locked = _lock(descriptor)
            holder = _read(descriptor)
            if locked is False or (not is_new and _lives(lock, descriptor, holder)):
                raise ValueError(
                    f"{output} must be written by one process at a time, {_describe(holder)}"
                    f" writes to it now; {advice}"
                )
            if holder:
                logger.warning("%s: %s ended while it wrote there", output, _describe(holder))
            if not is_new and (locked is None or holder.get("place", _place()) != _place()):
                _set_aside(lock, descriptor)  # whoever creates the next one has it
            elif _is_file(descriptor, lock):  # and not one that its holder has just removed
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(_record()).encode(), 0)
                kept, descriptor = descriptor, -1
                return kept
        finally:
            if descriptor >= 0:
                os.close(descriptor)


def _open(lock: Path) -> tuple[int, bool]:
    """The lock file, opened, and whether this created it."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        try:
            return os.open(lock, flags | os.O_CREAT | os.O_EXCL, 0o666), True
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
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


def _lives(lock: Path, descriptor: int, holder: dict[str, object]) -> bool:
    """Whether the holder of a lock file lives, for all that its lock does not say."""
    if holder.get("place") == _place():
        pid = int(str(holder["pid"]))
        return pid != os.getpid() and _started(pid) == holder.get("started")
    seen = os.fstat(descriptor).st_mtime
    if _now(lock.parent) - seen < LEASE:
        logger.warning(
            "%s: waiting up to %.0f s to see if %s lives", lock, LEASE, _describe(holder)
        )
    while _now(lock.parent) - seen < LEASE:
        if os.fstat(descriptor).st_mtime != seen:
            return True
        time.sleep(BEAT / 5)
    return False


def _now(folder: Path) -> float:
    """The time by the clock that stamps files in a folder, which may be a server's."""
    probe = folder / f".{secrets.token_hex(4)}.partial"
    try:
        probe.touch(exist_ok=False)
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _set_aside(lock: Path, judged: int) -> None:
    """Remove the lock file that was judged, and not one that took its place meanwhile."""
    aside = lock.with_name(f"{lock.name}.{secrets.token_hex(4)}.partial")
    try:
        os.rename(lock, aside)
    except FileNotFoundError:
        return
    if not _is_file(judged, aside):
        with contextlib.suppress(FileExistsError):
            os.link(aside, lock)
    aside.unlink()


def _free(owner: int, lock: Path, descriptor: int, ended: threading.Event) -> None:
    """Let others write; in a forked child, which holds nothing, only forget."""
    ended.set()
    if owner == os.getpid() and _is_file(descriptor, lock):
        lock.unlink()
    os.close(descriptor)


def _beat(lock: Path, descriptor: int, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):
            if _is_file(descriptor, lock):
                os.utime(lock)


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _record() -> dict[str, object]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": Path(sys.argv[0]).name,
        "place": _place(),
        "started": _started(os.getpid()),
    }


def _read(descriptor: int) -> dict[str, object]:
    """What a lock file says; nothing if its holder was killed before it wrote."""
    try:
        record = json.loads(os.pread(descriptor, 4096, 0))
        return record if isinstance(record, dict) and isinstance(record["pid"], int) else {}
    except (ValueError, KeyError):
        return {}


def _describe(holder: dict[str, object]) -> str:
    if not holder:
        return "another process"
    return "process {pid} on {host} (since {since}, {command})".format_map(
        {key: holder.get(key, "?") for key in ("pid", "host", "since", "command")}
    )


def _place() -> str:
    """Where process numbers mean the same: a host since it was started, a container in it."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"


def _started(pid: int) -> int | None:
    """When a process was started, in ticks since the host was; None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])


def _forget() -> None:
    """In a child, which holds nothing of its parent's."""
    global _claiming
    _held.clear()
    _claiming = threading.RLock()


os.register_at_fork(after_in_child=_forget)
