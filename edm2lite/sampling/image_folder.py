"""A folder or ZIP of generated images: what should be in it, what is, and what is missing.

Images are ``<seed / 1000>/<seed>.png``. ``dataset.json`` has their classes, prompts and digests of
other conditions, ``settings.json`` the settings that they were made with. The processes of one
command fill a folder together, each with seeds of its own: every file appears whole, and files that
all of them write are equal. Another command has to wait. A ZIP file is filled as a folder beside
it, ``images.zip.parts``.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edm2lite.atomic import replacing
from edm2lite.claim import Claim, claim_file, claim_folder, claim_together
from edm2lite.image_grid import png
from edm2lite.network.conditioning import Conditioning
from edm2lite.sampling.condition_table import ConditionTable
from edm2lite.sampling.launched import GeneratedBatch
from edm2lite.sampling.whole_files import put, put_json
from edm2lite.strict_json import parse
from edm2lite.threads import map_in_threads

WRITERS = 8
"""Number of threads that write images: encoding gives up Python's lock, and disks may be slow."""


class ImageFolder:
    """Images by seed in ``path``: a ZIP file if it ends in .zip, otherwise a folder.

    Args:
        path: Folder or ZIP file.

    Example:
        >>> import tempfile
        >>> import torch
        >>> images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
        >>> with tempfile.TemporaryDirectory() as place:
        ...     folder = ImageFolder(Path(place) / "images.zip")
        ...     missing = folder.open({"weights": "a1b2"}, seeds=[7])
        ...     folder.write(GeneratedBatch([7], Conditioning(), images))
        ...     folder.finish()
        ...     missing, folder.images([7])[0].shape
        ([0], (1, 8, 8))
    """

    def __init__(self, path: Path):
        self.path = path
        self.is_zip = path.suffix.lower() == ".zip"
        self.folder = path.with_name(path.name + ".parts") if self.is_zip else path
        self._table = ConditionTable()

    def claim(self) -> contextlib.AbstractContextManager[Claim | None]:
        """The right to write here, for all processes that torchrun started.

        Raises:
            ValueError: If another command writes here, or a folder cannot be here.
        """
        if not self.is_zip and self.path.is_file():
            raise ValueError(f"{self.path} is a file; give a folder, or a name that ends in .zip")
        return claim_together(claim_file if self.is_zip else claim_folder, self.path)

    def open(
        self,
        settings: Mapping[str, Any],
        seeds: Sequence[int],
        conditioning: Conditioning | None = None,
        *,
        prompts: Sequence[str] | None = None,
        earlier: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Check that the place is free or holds images of these settings; begin to fill it.

        Args:
            settings: Settings that the images are made with, as JSON can hold them.
            seeds: Seeds of the images that should be there in the end.
            conditioning: What the network is told about each of them.
            prompts: Prompt of each of them.
            earlier: Values by which earlier versions recorded some of the settings.

        Returns:
            Positions in ``seeds`` of the images that are missing.

        Raises:
            ValueError: If it holds images of other settings, or one of ``seeds`` that was made with
                other conditions or another prompt.
        """
        if len(set(seeds)) < len(seeds):
            raise ValueError("seeds must be unique, got duplicates; leave them out")
        self._check_settings(json.loads(json.dumps(settings)), earlier or {})
        self._table = ConditionTable.of(seeds, conditioning or Conditioning(), prompts)
        self._table.check(self._table_there(), self.path)
        with self._archive() as archive:
            packed = set(archive.namelist()) if archive is not None else set()
        missing = [
            i for i, s in enumerate(seeds) if self._name(s) not in packed and not self.has(s)
        ]
        if missing or not self.is_zip:
            put_json(self.folder / "settings.json", settings)
            self._add_conditions()  # before the images: an image always has its class
        return missing

    def has(self, seed: int) -> bool:
        """Whether the folder holds the image; an empty file is what a power cut leaves of one."""
        file = self.folder / self._name(seed)
        return file.is_file() and file.stat().st_size > 0

    def write(self, batch: GeneratedBatch) -> None:
        """Write the images of a batch to their places."""
        list(self.write_all([batch]))

    def write_all(
        self, batches: Iterable[GeneratedBatch], *, ahead: int = 2 * WRITERS
    ) -> Iterator[int]:
        """Write the images of batches on threads while the next batch is made.

        Args:
            batches: The batches, which are drawn meanwhile.
            ahead: Number of images that may wait to be written.

        Yields:
            The number of images of each batch that has some, in order, when all of them are in
            their places.

        Raises:
            OSError: If an image cannot be written.
        """

        def images() -> Iterator[tuple[int, NDArray[np.uint8], int]]:
            for batch in batches:
                num = len(batch.seeds)
                counts = [num if i == num - 1 else 0 for i in range(num)]
                yield from zip(batch.seeds, batch.images.numpy(), counts, strict=True)

        def write(item: tuple[int, NDArray[np.uint8], int]) -> int:
            seed, image, count = item
            save_png(self.folder / self._name(seed), image)
            return count

        return filter(None, map_in_threads(write, images(), WRITERS, ahead=ahead))

    def wait(self, seeds: Sequence[int], arrived: Callable[[int], None]) -> None:
        """Return when other processes have written the images of all ``seeds``.

        Args:
            seeds: Seeds of the images.
            arrived: Called with the number of images that are new, again and again.
        """
        while seeds:
            left = [seed for seed in seeds if not self.has(seed)]
            arrived(len(seeds) - len(left))
            seeds = left
            if seeds:
                time.sleep(0.2)

    def finish(self) -> None:
        """Pack what is to be a ZIP file; for one process to call, when every image is there."""
        if not self.folder.is_dir():
            return
        for left in self.folder.rglob(".*.partial"):  # by a process that was killed
            left.unlink(missing_ok=True)
        if not self.is_zip:
            return
        own = {p.relative_to(self.folder).as_posix(): p for p in self.folder.rglob("*.*")}
        own = {name: path for name, path in own.items() if not path.name.startswith(".")}
        with (
            self._archive() as old,
            replacing(self.path, "wb") as file,
            zipfile.ZipFile(file, "w") as archive,
        ):
            for name in sorted({*own, *(old.namelist() if old is not None else ())}):
                data = own[name].read_bytes() if name in own or old is None else old.read(name)
                archive.writestr(zipfile.ZipInfo(name), data)  # stored: a PNG is compressed
        shutil.rmtree(self.folder)

    def images(self, seeds: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Pixels [C, H, W] of the image of each seed."""
        names = [self._name(seed) for seed in seeds]
        if self.is_zip:
            with zipfile.ZipFile(self.path) as archive:
                return [_pixels(archive.read(name)) for name in names]
        return [_pixels((self.path / name).read_bytes()) for name in names]

    def _check_settings(self, settings: dict[str, Any], earlier: Mapping[str, Any]) -> None:
        data = self._read("settings.json")
        if data is None:
            if (self.is_zip and self.path.exists()) or _visible(self.folder):
                raise ValueError(
                    f"{self.path} must be free or hold generated images, it has no settings.json;"
                    " choose another place"
                )
            return
        there = _upgraded(self._parsed("settings.json", data))
        different = [
            k
            for k in {**there, **settings}
            if there.get(k) not in (settings.get(k), earlier.get(k, settings.get(k)))
        ]
        if different:
            said = ", ".join(
                f"{k} ({_text(there.get(k))}, now {_text(settings.get(k))})" for k in different
            )
            raise ValueError(
                f"{self.path} holds images of other {said}; remove it, or choose another place"
            )

    def _table_there(self) -> ConditionTable:
        data = self._read("dataset.json")
        try:
            return ConditionTable.read({} if data is None else self._parsed("dataset.json", data))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{self.path} must list generated images in its dataset.json, and does not"
                f" ({error}); remove it, or choose another place"
            ) from error

    def _parsed(self, name: str, data: bytes) -> dict[str, Any]:
        try:
            values = parse(data, finite=False)  # a level of noise may be infinite
        except ValueError as error:
            raise ValueError(
                f"{name} in {self.path} must be JSON, but {error}; remove it, or choose another"
                " place"
            ) from error
        return values if isinstance(values, dict) else {}

    def _add_conditions(self) -> None:
        there = self._table_there()
        merged = there.merged(self._table)
        if merged != there:
            put_json(self.folder / "dataset.json", merged.content(self._name))

    def _name(self, seed: int) -> str:
        return f"{seed // 1000:06d}/{seed:06d}.png"

    def _read(self, name: str) -> bytes | None:
        """A file of the folder, or else of the ZIP, which may have been made before."""
        if (self.folder / name).is_file():
            return (self.folder / name).read_bytes()
        with self._archive() as archive:
            if archive is None or name not in archive.namelist():
                return None
            return archive.read(name)

    @contextlib.contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile | None]:
        if not self.is_zip or not self.path.exists():
            yield None
            return
        try:
            archive = zipfile.ZipFile(self.path)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{self.path} is not a ZIP file ({error}); remove it") from error
        with archive:
            yield archive


def save_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write uint8 [C, H, W] with C = 1 or 3 to a PNG file, atomically."""
    put(path, png(image))  # no fsync: images are cheap to make again


def _pixels(data: bytes) -> NDArray[np.uint8]:
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _visible(folder: Path) -> bool:
    return folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())


def _upgraded(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a folder in the words of this version; 0.1 had another one for a guide."""
    if settings.get("guide") == "unlabelled":
        return {**settings, "guide": "unconditional"}
    return settings


def _text(value: object) -> str:
    return "default" if value is None else json.dumps(value)
