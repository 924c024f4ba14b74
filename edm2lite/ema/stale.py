"""Snapshots from after the moment that a run continues from: kept, but never among the others.

They move to ``snapshots/superseded/``, where nothing looks for snapshots. When the run comes past
the same moment and writes the same bytes again, the copy there goes. One that differs, as on a GPU
whose sums are not repeatable, stays for its owner to judge.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from edm2lite.atomic import sync
from edm2lite.ema.snapshot import SnapshotInfo, read_info, scan_snapshots, snapshot_path

logger = logging.getLogger(__name__)

FOLDER = "superseded"


def set_aside(snapshots: Path, nimg: int) -> None:
    """Move the snapshots of later than ``nimg``, and remove what an interrupted write left."""
    if not snapshots.is_dir():
        return
    for partial in snapshots.glob(".*.partial"):
        partial.unlink()
    later = [s.info for s in scan_snapshots(snapshots) if s.info is not None and s.info.nimg > nimg]
    if not later:
        return
    aside = snapshots / FOLDER
    aside.mkdir(exist_ok=True)
    for info in later:
        os.replace(info.path, _free_name(aside, info))
    sync(aside)
    sync(snapshots)
    logger.info(
        "%d snapshots of after nimg = %d, from which the run continues, are now in %s",
        len(later), nimg, aside,
    )  # fmt: skip


def settle(snapshots: Path) -> list[Path]:
    """Remove the copies that were written again, bit for bit; the ones that differ are returned."""
    aside = snapshots / FOLDER
    different = []
    for info in _infos(aside):
        again = snapshot_path(snapshots, info.sigma_rel, info.nimg)
        if not again.is_file():
            continue
        if _same(info, read_info(again)):
            info.path.unlink()
        else:
            different.append(info.path)
    if aside.is_dir() and not any(aside.iterdir()):
        aside.rmdir()
    return different


def _free_name(aside: Path, info: SnapshotInfo) -> Path:
    """Where to put a snapshot: over an equal one, or under a new name."""
    path, k = aside / info.path.name, 2
    while path.exists() and not _same(info, read_info(path)):
        path, k = aside / f"{info.path.stem}.{k}.safetensors", k + 1
    return path


def _same(info: SnapshotInfo, other: SnapshotInfo | None) -> bool:
    return other is not None and info.header.metadata == other.header.metadata


def _infos(folder: Path) -> list[SnapshotInfo]:
    found = scan_snapshots(folder) if folder.is_dir() else []
    return [s.info for s in found if s.info is not None]
