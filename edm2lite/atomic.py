"""Files that appear complete or not at all, even after a power cut."""

from __future__ import annotations

import contextlib
import os
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

    Until then an earlier file of that name stays as it was.

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
    temporary = path.with_name(f".{path.name}.partial")
    try:
        file = open(temporary, mode)  # noqa: SIM115 closed below, where a second failure is ignored
        try:
            yield file
            with naming(path):
                file.flush()
                os.fsync(file.fileno())
        finally:
            with contextlib.suppress(OSError):  # closing flushes again what could not be written
                file.close()
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
