"""One writer for a folder: a lock on it that the system takes back when the process ends."""

from __future__ import annotations

import os
from pathlib import Path
from weakref import WeakValueDictionary, finalize

from edm2lite.atomic import lock

_held: WeakValueDictionary[Path, Claim] = WeakValueDictionary()


class Claim:
    """The right of this process to write to a folder, for as long as the object lives.

    Claims of one process on one folder are the same object. File systems that cannot lock a folder
    (some network file systems) are written to without a claim.

    Raises:
        ValueError: If another process writes to the folder.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> mine = claim(folder)
        >>> claim(folder) is mine
        True
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._descriptor = os.open(folder, os.O_RDONLY)
        finalize(self, os.close, self._descriptor)
        if lock(self._descriptor) is False:
            raise ValueError(
                f"snapshots in one folder must be written by one process, another one writes to"
                f" {folder} now; wait for it to end, or, in a loop of your own with several"
                " ranks, call save_snapshots() on rank 0 alone"
            )


def claim(folder: Path) -> Claim:
    """Claim a folder, which is created if it is missing.

    Args:
        folder: Folder that this process is about to write to.

    Raises:
        ValueError: If another process writes to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    found = _held.get(folder)
    if found is None:
        found = _held[folder] = Claim(folder)
    return found
