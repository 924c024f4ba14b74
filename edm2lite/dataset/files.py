"""Named bytes in a folder or a ZIP archive: nothing outside of it is ever read or written."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from edm2lite.atomic import replacing


class Files(Protocol):
    """A set of files, by their names with ``/`` between folders."""

    path: Path
    names: list[str]

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            ValueError: It cannot be read.
        """

    def size(self, name: str) -> int:
        """Length of a file in bytes."""


def open_files(path: Path) -> Files:
    """The files of a folder or a ZIP, sorted by name.

    Raises:
        FileNotFoundError: There is neither.
        ValueError: The ZIP is damaged or has entries that lead out of it; the folder contains
            itself by a symbolic link.
    """
    if path.is_dir():
        return Folder(path)
    if path.is_file():
        return Archive(path)
    raise FileNotFoundError(f"there is no folder or ZIP {path}")


@dataclass
class Folder:
    """Files below a folder; symbolic links are followed unless they lead in a circle."""

    path: Path
    names: list[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.names = sorted(self._walk(self.path, "", []))

    def read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise ValueError(
                f"{name} in {self.path} cannot be read ({error.strerror}); remove or repair it"
            ) from error

    def size(self, name: str) -> int:
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
            else:
                yield prefix + entry.name


@dataclass
class Archive:
    """Entries of a ZIP; an archive with an entry that leads out of it is refused as a whole."""

    path: Path
    names: list[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            self._zip = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, ValueError, OSError) as error:
            raise ValueError(
                f"{self.path} must be a folder or a ZIP, got: {error}; a ZIP that was cut short has"
                " to be copied again"
            ) from error
        self.names = []
        for info in self._zip.infolist():
            if not _lies_inside(info):
                raise ValueError(
                    f"{self.path} has an entry {info.filename!r} that leads out of the archive;"
                    " make it again without"
                )
            if not info.is_dir() and not _hidden(info.filename):
                self.names.append(info.filename)
        self.names.sort()

    def read(self, name: str) -> bytes:
        try:
            return self._zip.read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
            raise ValueError(
                f"{name} in {self.path} cannot be read ({error}); copy the archive again"
            ) from error

    def size(self, name: str) -> int:
        return self._zip.getinfo(name).file_size


@contextmanager
def writing(dest: Path) -> Iterator[Callable[[str, bytes], None]]:
    """A function that adds a file to a ZIP or folder, which takes its name when the block ends."""
    if dest.suffix.lower() == ".zip":
        with replacing(dest, "wb") as stream, zipfile.ZipFile(stream, "w") as archive:
            yield lambda name, data: archive.writestr(zipfile.ZipInfo(name), data)
        return
    partial = dest.with_name(f".{dest.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)

    def add(name: str, data: bytes) -> None:
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_bytes(data)

    try:
        yield add
        os.sync()
        os.replace(partial, dest)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _hidden(name: str) -> bool:
    """Whether a name is of something that people do not see: partial files, thumbnails, ..."""
    return name.startswith((".", "__MACOSX/")) or "/." in name


def _lies_inside(info: zipfile.ZipInfo) -> bool:
    """Whether the name of an entry stays below the top on every system and is no link."""
    parts = info.orig_filename.replace("\\", "/").split("/")
    return not (
        ".." in parts
        or not parts[0]  # an absolute path
        or parts[0][1:2] == ":"  # a drive
        or stat.S_ISLNK(info.external_attr >> 16)
    )
