"""Stale snapshots: those that are later than the moment from which a run continues.

They are archived in ``snapshots/superseded/``, where nothing looks for snapshots. When the
continued run writes the same bytes again, the archived copy is deleted. One that differs, as on a
GPU whose sums are not reproducible, stays for its owner to judge. When the run continues from a
later moment instead, those that it has passed come back. Damaged files in the archive are left.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from edm2lite.atomic import remove_abandoned, sync
from edm2lite.ema.course import Course, link
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
        gammas: Exponents that the run tracks; raw weights always count. [default: those of all
            files]

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
        and (gammas is None or file.info.gamma in gammas or file.info.is_raw)
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


def bring_back(
    snapshots: Path, nimg: int, course: Course, present: Sequence[SnapshotInfo]
) -> list[SnapshotInfo]:
    """Move the archived snapshots of a course, up to ``nimg``, back to where they are missing.

    Of several for the same average, the one that a later snapshot names as its predecessor comes
    back. Where nothing tells them apart, none does, and a warning names them.

    Args:
        snapshots: Folder of the snapshots; it need not exist.
        nimg: Image count from which the run continues.
        course: What the run did until then.
        present: The snapshots of the run in the folder.

    Returns:
        The snapshots that are back.

    Example:
        >>> bring_back(Path("runs/none/snapshots"), 64, Course("a1", 0, [(64, 1)], [6.9]), [])
        []
    """
    digests = {(info.gamma, info.nimg): str(info.header.digest) for info in present}
    named = {(info.gamma, before[0]): before[1] for info in present if (before := link(info))}
    candidates: dict[tuple[float, int], dict[str, SnapshotInfo]] = {}
    for info in _infos(snapshots / FOLDER, is_noted=True):
        key, digest = (info.gamma, info.nimg), str(info.header.digest)
        if info.nimg <= nimg and key not in digests and course.includes(info):
            candidates.setdefault(key, {})[digest] = info
    found = []
    for (gamma, time), several in sorted(candidates.items(), key=lambda item: -item[0][1]):
        digest = named.get((gamma, time), next(iter(several)))
        if digest not in several or (len(several) > 1 and (gamma, time) not in named):
            paths = ", ".join(str(info.path) for info in several.values())
            logger.warning("a snapshot of nimg = %d is missing, and may be one of %s", time, paths)
            continue
        info = several[digest]
        before = link(info)
        if before is not None:
            if digests.get((gamma, before[0]), before[1]) != before[1]:
                continue  # it went on from other values than those that are here
            named[gamma, before[0]] = before[1]
        path = snapshot_path(snapshots, info.sigma_rel, time)
        if path.exists():  # a damaged one, which its owner is told of
            continue
        os.replace(info.path, path)
        found.append(path)
    if found:
        sync(snapshots)
        logger.warning(
            "%d archived snapshots up to nimg = %d, from which the run continues, are back in %s",
            len(found), nimg, snapshots,
        )  # fmt: skip
    return [back for path in found if (back := read_info(path)) is not None]


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
        if _holds(again, info):
            info.path.unlink()
        else:
            different.append(info.path)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    return different


def _free_name(folder: Path, info: SnapshotInfo) -> Path:
    """Where to archive a snapshot: over an equal one, or under a new name."""
    path, k = folder / info.path.name, 2
    while path.exists() and not _holds(path, info):
        path, k = folder / f"{info.path.stem}.{k}.safetensors", k + 1
    return path


def _holds(path: Path, info: SnapshotInfo) -> bool:
    """Whether a file holds the same snapshot; a damaged one does not."""
    try:
        found = read_info(path)
    except ValueError:
        return False
    return found is not None and found.header.metadata == info.header.metadata


def _infos(folder: Path, *, is_noted: bool = False) -> list[SnapshotInfo]:
    """The intact snapshots in the archive; with ``is_noted`` damaged ones are logged."""
    files = scan_snapshots(folder) if folder.is_dir() else []
    for file in files:
        if file.error is not None and is_noted:
            logger.warning("a damaged file among archived snapshots is left: %s", file.error)
    return [file.info for file in files if file.info is not None and file.error is None]
