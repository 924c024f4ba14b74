"""The course of a run: whether the snapshots of a folder continue each other, or a run was forked.

A run that goes on from an older checkpoint gives up what it did since. Snapshots of both courses
must not be combined, and carry the same identifier. Two things in their headers tell them apart:
the histories of updates, of which an earlier one begins every later one, and the link of each
snapshot to the one before it (``previous``: its time and the digest of its values).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from edm2lite.ema.snapshot import SnapshotInfo
from edm2lite.strict_json import parse

Fork = tuple[SnapshotInfo, SnapshotInfo, str]
"""Two snapshots that cannot be of one course, the earlier one first, and what shows it."""


class Course(NamedTuple):
    """What a run has done so far.

    Attributes:
        run: Identifier of the run.
        start_nimg: Image count at which averaging began.
        history: Run-length list of the updates, [[stride, updates], ...].
        gammas: Exponents that are tracked.
    """

    run: str
    start_nimg: int
    history: Sequence[Sequence[int]]
    gammas: Sequence[float]

    def includes(self, info: SnapshotInfo) -> bool:
        """Whether a snapshot is of an earlier moment of this course, by what its header says."""
        return (
            (info.run, info.start_nimg) == (self.run, self.start_nimg)
            and info.gamma in self.gammas
            and _begins(info.history, self.history)
        )


def link(info: SnapshotInfo) -> tuple[int, str] | None:
    """Time and digest of the snapshot of the same length that was written before this one.

    None if there was none, or the file is of a version that recorded none.
    """
    text = info.header.metadata.get("previous")
    if text is None:
        return None
    nimg, digest = parse(text)
    return int(nimg), str(digest)


def link_text(nimg: int, digest: str) -> str:
    """The metadata that :func:`link` reads."""
    return json.dumps([nimg, digest], separators=(",", ":"))


def forks(infos: Sequence[SnapshotInfo]) -> Iterator[Fork]:
    """Pairs of snapshots that contradict each other; none if all are of one course.

    The history of an imported file (``source`` in its metadata) is a guess, and is not compared.
    Raw weights record no course.

    Args:
        infos: Snapshots of one run, by time.
    """
    for early, late in itertools.pairwise(_tracked(infos)):
        if not _is_one_course(early, late):
            yield early, late, "they saw different updates"
    stored = _by_digest(infos)
    for late in infos:
        if (before := link(late)) is None:
            continue
        found = stored.get((late.gamma, before[0]), {})
        if found and before[1] not in found:
            early = next(iter(found.values()))
            yield early, late, "the later one was written after other values than these"


def check_one_course(folder: Path, infos: Sequence[SnapshotInfo]) -> None:
    """Refuse to combine snapshots of a course that was given up with those of the one that went on.

    Args:
        folder: Folder of the files, for the message.
        infos: Snapshots of one run, by time.

    Raises:
        ValueError: If two of them contradict each other.
    """
    for early, late, reason in forks(infos):
        raise ValueError(
            f"snapshots must be of one course of training, {early.path.name} and {late.path.name}"
            f" in {folder} are not ({reason}): the run went on from an older checkpoint; move the"
            " files of the course that was given up elsewhere"
            " (edm2lite snapshots lists them)"
        )


def given_up(infos: Sequence[SnapshotInfo]) -> dict[Path, str]:
    """The snapshots that are not of the course which was written last, each with a message.

    That course is the one of the file with the latest time of modification; of several, that of the
    latest image count.

    Args:
        infos: Snapshots of one run, by time.

    Returns:
        File -> message for the user; empty if all are of one course.
    """
    if next(forks(infos), None) is None:
        return {}
    infos = _tracked(infos)
    newest = max(infos, key=lambda info: (info.path.stat().st_mtime_ns, info.nimg))
    stored, lost = _by_digest(infos), set()
    for info in infos:
        early, late = sorted((info, newest), key=lambda info: info.nimg)
        nimg, digest = link(info) or (0, "")
        found = stored.get((info.gamma, nimg), {})
        follows = not found or (digest in found and found[digest].path not in lost)
        if not follows or not _is_one_course(early, late):
            lost.add(info.path)
    return {
        path: f"{path} is of a course of training that was given up: the run went on from an older"
        f" checkpoint and wrote {newest.path.name} last; move it out of the folder"
        for path in lost
    }


def _by_digest(infos: Sequence[SnapshotInfo]) -> dict[tuple[float, int], dict[str, SnapshotInfo]]:
    """Exponent and time -> digest -> the snapshots stored for it; usually one."""
    stored: dict[tuple[float, int], dict[str, SnapshotInfo]] = {}
    for info in infos:
        stored.setdefault((info.gamma, info.nimg), {})[str(info.header.digest)] = info
    return stored


def _tracked(infos: Sequence[SnapshotInfo]) -> list[SnapshotInfo]:
    """The snapshots that are averages."""
    return [info for info in infos if not info.is_raw]


def _is_one_course(early: SnapshotInfo, late: SnapshotInfo) -> bool:
    if "source" in early.header.metadata or "source" in late.header.metadata:
        return True
    return early.start_nimg == late.start_nimg and _begins(early.history, late.history)


def _begins(early: Sequence[Sequence[int]], late: Sequence[Sequence[int]]) -> bool:
    """Whether the updates of one history are the first ones of another."""
    runs, others = _merged(early), _merged(late)
    if not runs:
        return True
    *whole, (stride, count) = runs
    n = len(whole)
    if others[:n] != whole or len(others) <= n:
        return False
    return others[n][0] == stride and others[n][1] >= count


def _merged(history: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """A run-length list in which no stride follows itself."""
    return [
        (stride, sum(count for _, count in runs))
        for stride, runs in itertools.groupby(history, key=lambda pair: pair[0])
    ]
