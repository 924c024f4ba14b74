"""Files that appear complete or not at all, even after a power cut.

A file is written under a hidden name of its own, ``.NAME.<random>.partial``, and renamed when it is
complete. It is locked while its writer lives, so that what a killed process left behind is told
from what another one is writing, and is removed by the next writer of that name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def sync(path: Path) -> None:
    """Flush a file to disk, or a folder, so that a rename in it survives a power cut.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "draft.txt").write_text("done")
        >>> _ = (folder / "draft.txt").rename(folder / "final.txt")
        >>> sync(folder)
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder; what they can promise is promised anyway.
        if error.errno != errno.EINVAL or not Path(path).is_dir():
            error.filename = str(path)
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name ``path`` in any OSError of the block; errors of an open file do not say which file.

    Example:
        >>> with naming(Path("results.csv")):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        OSError: [Errno 28] No space left on device: 'results.csv'
    """
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[Any]:
    """An open file that becomes ``path`` when the block ends, and is discarded if it raises.

    Until then an earlier file of that name stays as it was. Several processes may replace one file:
    the last one to finish does.

    Args:
        path: Name that the finished file takes. Missing folders are created.
        mode: Mode of :func:`open`: ``"w"`` or ``"wb"``.

    Raises:
        OSError: If the file cannot be written; the error names it.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "report.txt"
        >>> with replacing(path) as file:
        ...     _ = file.write("complete")
        >>> path.read_text(), [p.name for p in path.parent.iterdir()]
        ('complete', ['report.txt'])
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, f".{glob.escape(path.name)}.*.partial")
    file, temporary = _create(path, mode)
    try:
        try:
            yield file
            with naming(path):
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)  # while it is locked
        finally:
            with contextlib.suppress(OSError):  # closing flushes again what could not be written
                file.close()
        sync(path.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A new folder that becomes ``path`` when the block ends, and is removed if it raises.

    Folders cannot be locked: what a killed process left of this folder is removed, so one process
    at a time may do this (:func:`edm2lite.claim.claim_file`). Files are to be on disk when the
    block ends.

    Args:
        path: Name that the finished folder takes; nothing may bear it. Missing parents are created.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "letters"
        >>> with replacing_folder(path) as folder:
        ...     _ = (folder / "a.txt").write_text("a")
        >>> [p.name for p in path.iterdir()], [p.name for p in path.parent.iterdir()]
        (['a.txt'], ['letters'])
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*partial"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    temporary.mkdir()
    try:
        yield temporary
        os.rename(temporary, path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_abandoned(folder: Path, pattern: str = ".*.partial") -> None:
    """Remove the hidden files of writers that no longer live.

    Args:
        folder: Folder to look in; it need not exist.
        pattern: Which names to look at.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / ".report.txt.0a1b.partial").write_text("half")
        >>> remove_abandoned(folder)
        >>> list(folder.iterdir())
        []
    """
    for path in folder.glob(pattern):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:  # gone, a link, a folder: nothing that this module wrote
            continue
        try:
            if lock(descriptor):
                path.unlink()
        except FileNotFoundError:
            pass
        finally:
            os.close(descriptor)


def _create(path: Path, mode: str) -> tuple[Any, Path]:
    """A new locked file that no other process has, beside ``path``, and its name."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | getattr(os, "O_CLOEXEC", 0)
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        with naming(path):
            descriptor = os.open(temporary, flags, 0o666)
        # Between creation and lock another process may take the file for an abandoned one.
        if lock(descriptor) is not False and os.fstat(descriptor).st_nlink:
            return os.fdopen(descriptor, mode), temporary
        os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def lock(descriptor: int) -> bool | None:
    """Lock an open file or folder until it is closed, also by the end of this process.

    Returns:
        False if another process holds it, None where files cannot be locked.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryFile() as file:
        ...     lock(file.fileno())
        True
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True
