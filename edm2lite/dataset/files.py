"""The files of a folder or a ZIP archive, by name; nothing outside of it is read or written."""

from __future__ import annotations

import itertools
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from edm2lite.atomic import replacing, replacing_folder
from edm2lite.claim import claim_file
from edm2lite.messages import one_line

_DAMAGES = (
    zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, RuntimeError, ValueError
)  # fmt: skip
"""What :mod:`zipfile` raises for damaged archives."""


LARGEST = 2**28
"""Largest size of a file that is read as a whole, in bytes, unless the reader says otherwise."""


class Files(Protocol):
    """Files by name, with ``/`` between folders.

    Attributes:
        path: Path of the folder or archive.
        names: Names of all files, sorted.
    """

    path: Path
    names: list[str]

    def read(self, name: str, limit: int = LARGEST) -> bytes:
        """Content of a file.

        Args:
            name: Name of the file.
            limit: Largest size in bytes.

        Raises:
            ValueError: If it cannot be read, or is larger.
        """

    def size(self, name: str) -> int:
        """Length of a file in bytes."""


def open_files(path: Path) -> Files:
    """The files of a folder or a ZIP.

    Raises:
        FileNotFoundError: If there is no folder or file of that name.
        ValueError: If the ZIP is damaged or has entries that lead out of it, or the folder contains
            itself by a symbolic link.
    """
    if path.is_dir():
        return Folder(path)
    if path.is_file():
        return Archive(path)
    raise FileNotFoundError(f"there is no folder or ZIP {path}")


@dataclass
class Folder:
    """Files below a folder; symbolic links are followed, but not in a circle or to nothing."""

    path: Path
    names: list[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.names = sorted(self._walk(self.path, "", []))

    def read(self, name: str, limit: int = LARGEST) -> bytes:
        """See :meth:`Files.read`."""
        try:
            _check_size(name, self.path, self.size(name), limit)
            return (self.path / name).read_bytes()
        except OSError as error:
            raise ValueError(
                f"{name} in {self.path} cannot be read ({error.strerror}); remove or repair it"
            ) from error

    def size(self, name: str) -> int:
        """See :meth:`Files.size`."""
        return (self.path / name).stat().st_size

    def _walk(self, folder: Path, prefix: str, above: list[tuple[int, int]]) -> Iterator[str]:
        info = folder.stat()
        here = (info.st_dev, info.st_ino)
        if here in above:
            raise ValueError(
                f"{folder} is a symbolic link to a folder that it lies in; remove that link"
            )
        with os.scandir(folder) as found:
            entries = list(found)
        for entry in entries:
            if _hidden(entry.name):
                continue
            try:
                is_folder = entry.is_dir()
            except OSError as error:
                raise ValueError(
                    f"{folder / entry.name} cannot be followed ({error.strerror}); remove it"
                ) from error
            if is_folder:
                yield from self._walk(folder / entry.name, f"{prefix}{entry.name}/", [*above, here])
            elif entry.is_file():
                yield prefix + entry.name
            else:
                raise ValueError(
                    f"{folder / entry.name} must be a file or a folder, it is a pipe or a link to"
                    " nothing; remove it"
                )


@dataclass
class Archive:
    """Entries of a ZIP; an archive with an entry that leads out of it is refused as a whole."""

    path: Path
    names: list[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            self._zip = zipfile.ZipFile(self.path)
        except _DAMAGES as error:
            raise ValueError(
                f"{self.path} must be a folder or a ZIP, got: {one_line(error, 200)}; if the ZIP"
                " was cut short, copy it again"
            ) from error
        self.names = []
        for info in self._zip.infolist():
            if not _lies_inside(info):
                raise ValueError(
                    f"{self.path} has an entry {info.filename!r} that leads out of the archive;"
                    " create the archive again without it"
                )
            if not info.is_dir() and not _hidden(info.filename):
                self.names.append(info.filename)
        self.names.sort()
        for name, following in itertools.pairwise(self.names):
            if name == following:
                raise ValueError(
                    f"{self.path} has two entries {name!r}; create the archive again with one"
                )

    def read(self, name: str, limit: int = LARGEST) -> bytes:
        """See :meth:`Files.read`."""
        info = self._zip.getinfo(name)
        _check_size(name, self.path, info.file_size, limit)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(
                f"{name} in {self.path} must be stored or deflated, and is packed otherwise; create"
                " the archive again"
            )
        try:
            with self._zip.open(info) as file:  # in pieces: its size may be a lie
                data = file.read(info.file_size)
        except _DAMAGES as error:
            raise ValueError(
                f"{name} in {self.path} cannot be read ({one_line(error, 200)}); copy the archive"
                " again"
            ) from error
        if len(data) != info.file_size:
            raise ValueError(f"{name} in {self.path} is cut short; copy the archive again")
        return data

    def size(self, name: str) -> int:
        """See :meth:`Files.size`."""
        return self._zip.getinfo(name).file_size


@contextmanager
def writing(dest: Path) -> Iterator[Callable[[str, bytes], None]]:
    """A function that adds a file to a new ZIP or folder; it gets its name when the block ends.

    If the block raises, nothing is left behind.

    Args:
        dest: Path of the ZIP (if it ends so) or folder.

    Raises:
        ValueError: If ``dest`` exists, or another process writes it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     with writing(Path(name, "a.zip")) as add:
        ...         add("hello.txt", b"hello")
        ...     open_files(Path(name, "a.zip")).read("hello.txt")
        b'hello'
    """
    with claim_file(dest) as mine:
        if dest.exists():
            raise ValueError(f"{dest} exists; remove it, or give another name")
        with _zip(dest) if dest.suffix.lower() == ".zip" else _folder(dest) as add:
            yield add
            mine.check()


@contextmanager
def _zip(dest: Path) -> Iterator[Callable[[str, bytes], None]]:
    with replacing(dest, "wb") as stream, zipfile.ZipFile(stream, "w") as archive:
        yield lambda name, data: archive.writestr(zipfile.ZipInfo(name), data)


@contextmanager
def _folder(dest: Path) -> Iterator[Callable[[str, bytes], None]]:
    with replacing_folder(dest) as partial:

        def add(name: str, data: bytes) -> None:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(data)

        yield add
        os.sync()


def _check_size(name: str, path: Path, size: int, limit: int) -> None:
    if size > limit:
        raise ValueError(
            f"{name} in {path} must have at most {limit} bytes, it has {size}; remove it"
        )


def _hidden(name: str) -> bool:
    """Whether a name is that of something people do not see: partial files, thumbnails, ..."""
    return name.startswith((".", "__MACOSX/")) or "/." in name


def _lies_inside(info: zipfile.ZipInfo) -> bool:
    """Whether an entry stays below the top on every system, and is not a link."""
    parts = info.orig_filename.replace("\\", "/").split("/")
    return not (
        ".." in parts
        or not parts[0]  # an absolute path
        or not info.filename  # what is left of a name that begins with a NUL
        or parts[0][1:2] == ":"  # a drive
        or stat.S_ISLNK(info.external_attr >> 16)
    )
