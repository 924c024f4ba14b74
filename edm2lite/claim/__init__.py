"""One writer for an output: whoever writes claims it, and a second process is refused at once.

A claim is a hidden file that says who writes, ``.lock`` in a folder or ``.NAME.lock`` beside a
file. It is gone when the work ends, also by an error; what a killed process left is taken over.

An output is claimed if it is more than one file, or costs minutes. One file that is made in seconds
needs no claim: it appears whole (:mod:`edm2lite.atomic`), and the last writer's stays.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from weakref import WeakValueDictionary, finalize

from edm2lite import processes
from edm2lite.claim.lock_file import LockFile

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
        self._lock = LockFile(path, output, advice)
        self._free = finalize(self, self._lock.free)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def check(self) -> None:
        """See that nobody took this over, as happens to a lease when its host stood still.

        Raises:
            ValueError: If somebody did; nothing more may be written then.
        """
        if not self._lock.is_ours():
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
    whole = path.resolve()
    return _claim(whole.with_name(f".{whole.name}.lock"), path, advice)


def claim_together(
    claim: Callable[[Path], Claim | None], path: Path
) -> AbstractContextManager[Claim | None]:
    """Claim an output for all processes that torchrun started: the first one holds the claim.

    Args:
        claim: :func:`claim_folder` or :func:`claim_file`, or a function that may also return None
            where nothing is to be written.
        path: What these processes are about to write.

    Returns:
        The claim in the first process; None in the others, which wait until the first one has it.

    Raises:
        ValueError: If another process writes it; torchrun then ends the others.

    Example:
        >>> import tempfile
        >>> with claim_together(claim_folder, Path(tempfile.mkdtemp())) as mine:
        ...     mine.path.name
        '.lock'
    """
    mine = processes.after_first(f"claim {path}", lambda: claim(path))
    return contextlib.nullcontext() if mine is None else mine


def _claim(lock: Path, output: Path, advice: str) -> Claim:
    with _claiming:
        found = _held.get(lock)
        if found is None:
            found = _held[lock] = Claim(lock, output, advice)
        found.users += 1
        return found


def _forget() -> None:
    """In a child, which holds nothing of its parent's."""
    global _claiming
    _held.clear()
    _claiming = threading.RLock()


os.register_at_fork(after_in_child=_forget)
