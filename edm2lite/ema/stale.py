"""Stale snapshots: those that are later than the moment from which a run continues.

They are archived in ``snapshots/superseded/``, where nothing looks for snapshots. When the
continued run writes the same bytes again, the archived copy is deleted. One that differs, as on a
GPU whose sums are not reproducible, stays for its owner to judge.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from pathlib import Path

from edm2lite.atomic import remove_abandoned, sync
from edm2lite.ema.folder import scan_snapshots
from edm2lite.ema.snapshot import SnapshotInfo, read_info, snapshot_path

logger = logging.getLogger(__name__)

FOLDER = "superseded"
"""Name of the archive within the folder of the snapshots."""


def archive(snapshots: Path, nimg: int, gammas: Collection[float] | None = None) -> None:
    """Archive the snapshots that are later than ``nimg``, and delete partly written files.

    Args:
        snapshots: Folder of the snapshots; it need not exist.
        nimg: Image count from which the run continues.
        gammas: Exponents that the run tracks. [default: those of all files]

    Example:
        >>> import tempfile, torch
        >>> from edm2lite.ema import PowerFunctionEMA
        >>> ema, folder = PowerFunctionEMA({"w": torch.ones(3)}, [0.10]), tempfile.mkdtemp()
        >>> for count in (64, 128):
        ...     ema.update(count)
        ...     _ = ema.save_snapshots(folder)
        >>> archive(Path(folder), nimg=64)
        >>> [path.name for path in Path(folder, FOLDER).iterdir()]
        ['ema-0.10000-0000000128.safetensors']
    """
    if not snapshots.is_dir():
        return
    remove_abandoned(snapshots)
    files = scan_snapshots(snapshots)
    later = [
        file.info
        for file in files
        if file.info is not None
        and file.info.nimg > nimg
        and (gammas is None or file.info.gamma in gammas)
    ]
    if not later:
        return
    folder = snapshots / FOLDER
    folder.mkdir(exist_ok=True)
    for info in later:
        os.replace(info.path, _free_name(folder, info))
    sync(folder)
    sync(snapshots)
    logger.warning(
        "archived %d snapshots later than nimg = %d, from which the run continues, in %s",
        len(later), nimg, folder,
    )  # fmt: skip


def delete_reproduced(snapshots: Path) -> list[Path]:
    """Delete the archived snapshots that the run has written again, bit for bit.

    Args:
        snapshots: Folder of the snapshots; it need not exist.

    Returns:
        The archived snapshots that differ from what the run wrote in their place.

    Example:
        >>> delete_reproduced(Path("runs/none/snapshots"))
        []
    """
    folder = snapshots / FOLDER
    different = []
    for info in _infos(folder):
        again = snapshot_path(snapshots, info.sigma_rel, info.nimg)
        if not again.is_file():
            continue
        if _same(info, read_info(again)):
            info.path.unlink()
        else:
            different.append(info.path)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    return different


def _free_name(folder: Path, info: SnapshotInfo) -> Path:
    """Where to archive a snapshot: over an equal one, or under a new name."""
    path, k = folder / info.path.name, 2
    while path.exists() and not _same(info, read_info(path)):
        path, k = folder / f"{info.path.stem}.{k}.safetensors", k + 1
    return path


def _same(info: SnapshotInfo, other: SnapshotInfo | None) -> bool:
    return other is not None and info.header.metadata == other.header.metadata


def _infos(folder: Path) -> list[SnapshotInfo]:
    files = scan_snapshots(folder) if folder.is_dir() else []
    return [file.info for file in files if file.info is not None]
