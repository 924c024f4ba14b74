"""Rows of numbers for images 0, 1, 2, ..., made once, kept on disk, shared by processes.

Rows lie in files of 256 images. A measurement that was interrupted goes on with the next file, and
one of more images makes only the rows that are missing. Under torchrun process r makes files r,
r + world, ...; every file is the same whichever process makes it. A file that is damaged, or lies
in the place of another, is made again with a warning. Another command that needs rows of
this folder which are not there yet has to wait.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from edm2lite.claim import Claim, claim_folder, claim_together
from edm2lite.metrics.moments import Array
from edm2lite.tensorfile import load_tensors, read_header, save_tensors

logger = logging.getLogger(__name__)

CHUNK = 256
"""Number of rows in a file."""

SHOWN = 40
"""Number of images that are kept next to their rows, for people to look at."""

RowFactory = Callable[[range], tuple[Tensor, Tensor | None]]
"""Indices of images -> rows [n, D] float32, and the images uint8 [n, C, H, W] if there are any."""


class Rows:
    """The rows of one measurement, in a folder named after everything that they depend on.

    Args:
        folder: Folder for all rows of a sweep or an evaluation.
        key: Everything that the rows depend on, as JSON can hold it.
        rank: Index of this process; it makes every ``world``-th file.
        world: Number of processes.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rows = Rows(Path(folder), {"what": "squares"})
        ...     rows.fill(3, lambda i: (torch.tensor([[float(k * k)] for k in i]), None))
        ...     [part.tolist() for part in rows.parts(3)]
        [[[0.0], [1.0], [4.0]]]
    """

    def __init__(self, folder: Path, key: dict[str, Any], rank: int = 0, world: int = 1):
        self.key = key
        self._key = json.dumps(key, sort_keys=True)
        self.folder = folder / xxhash.xxh3_64_hexdigest(self._key.encode())
        self.rank, self.world = rank, world

    def fill(
        self, num: int, factory: RowFactory, done: Callable[[int], object] = lambda count: None
    ) -> None:
        """Make this process's share of the first ``num`` rows; the first one waits for the others.

        Args:
            num: Number of rows.
            factory: Function that makes rows.
            done: Function that is called with the number of rows of each file, made or found.

        Raises:
            ValueError: If rows are missing, and another command is making them.
        """
        begins = range(0, num, CHUNK)
        with self._claimed(num):
            for begin in begins[self.rank :: self.world]:
                self._fill(begin, min(CHUNK, num - begin), factory)
                done(min(CHUNK, num - begin))
            if self.rank == 0:
                for begin in (b for b in begins if b // CHUNK % self.world):
                    while self._count(begin) < min(CHUNK, num - begin):
                        time.sleep(0.02)
                    done(min(CHUNK, num - begin))

    def _claimed(self, num: int) -> AbstractContextManager[Claim | None]:
        """The right to write rows, if any are missing, for all processes that torchrun started."""
        if self.rank > 0 and self._has(num):
            return nullcontext()
        return claim_together(lambda f: None if self._has(num) else claim_folder(f), self.folder)

    def _has(self, num: int) -> bool:
        return all(self._count(b) >= min(CHUNK, num - b) for b in range(0, num, CHUNK))

    def _fill(self, begin: int, num: int, factory: RowFactory) -> None:
        old = self._load(begin)
        have = len(old["rows"]) if old else 0
        if have >= num:
            return
        new, images = factory(range(begin + have, begin + num))
        tensors = {"rows": new}
        if images is not None and begin == 0:
            tensors["images"] = images[: max(0, SHOWN - have)]
        if old:
            tensors = {k: torch.cat([old[k], tensors[k]]) if k in tensors else old[k] for k in old}
        save_tensors(self._path(begin), tensors, {"key": self._key})

    def parts(self, num: int) -> Iterator[Array]:
        """The first ``num`` rows, [n, D] float64 at a time."""
        for begin in range(0, num, CHUNK):
            rows = load_tensors(self._path(begin))[0]["rows"]
            yield rows[: num - begin].double().numpy()

    def images(self) -> Tensor | None:
        """The first images, uint8 [n, C, H, W] with n at most :data:`SHOWN`, if any were kept."""
        path = self._path(0)
        return load_tensors(path)[0].get("images") if path.is_file() else None

    def _load(self, begin: int) -> dict[str, Tensor]:
        """The tensors of a file; none if there is no such file, or it has to be made again."""
        path = self._path(begin)
        if not path.is_file():
            return {}
        try:
            tensors, metadata = load_tensors(path)
        except ValueError as error:
            logger.warning("%s; its rows are made again", error)
            return {}
        if metadata.get("key") != self._key:
            logger.warning("%s holds rows of other images; they are made again", path)
            return {}
        return tensors

    def _count(self, begin: int) -> int:
        """Number of rows that another process has written."""
        try:
            header = read_header(self._path(begin))
        except (FileNotFoundError, ValueError):  # or a damaged file, which that process replaces
            return 0
        is_own = header.metadata.get("key") == self._key
        return header.tensors["rows"].shape[0] if is_own else 0

    def _path(self, begin: int) -> Path:
        return self.folder / f"{begin:09d}.safetensors"
