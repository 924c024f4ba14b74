"""What can be wrong with the files of a folder of snapshots: one function per kind of fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edm2lite.ema.course import given_up
from edm2lite.ema.folder import ScannedFile, tensor_shapes
from edm2lite.ema.profile import PowerFunction
from edm2lite.ema.snapshot import SnapshotInfo
from edm2lite.ema.stream import Progress
from edm2lite.tensorfile import all_finite, read_blocks

Fault = tuple[str, str]
"""State of a file in a word or two, and a message for the user."""


def header_fault(file: ScannedFile) -> Fault | None:
    """The fault of a file whose header is damaged or of another format; None if it has none."""
    if file.error is not None:
        return "damaged" if file.info is None else "truncated", str(file.error)
    if file.info is None:
        return "other format", (
            f"{file.path} is not a snapshot (but a model or a reconstruction, say) and is ignored;"
            " move it out of the folder"
        )
    return None


def foreign_snapshots(infos: Sequence[SnapshotInfo]) -> dict[Path, Fault]:
    """Snapshots that are of another run or model than most of them."""
    faults: dict[Path, Fault] = {}
    if not infos:
        return faults
    run = _most_common([info.run for info in infos])
    shapes = _most_common([tensor_shapes(info) for info in infos if info.run == run])
    for info in infos:
        if info.run != run:
            message = f"{info.path} is of run {info.run}, the others are of {run}"
            faults[info.path] = "other run", f"{message}; move it out of the folder"
        elif tensor_shapes(info) != shapes:
            message = f"{info.path} holds other tensors than the others"
            faults[info.path] = "other shapes", f"{message}; move it out of the folder"
    return faults


def _most_common(values: Sequence[object]) -> object:
    return Counter(values).most_common(1)[0][0]


def abandoned_snapshots(infos: Sequence[SnapshotInfo]) -> dict[Path, Fault]:
    """Snapshots of a course of the run that was given up for another one.

    Args:
        infos: Snapshots of one run.
    """
    by_time = sorted(infos, key=lambda info: (info.nimg, -info.gamma))
    return {path: ("other course", message) for path, message in given_up(by_time).items()}


def byte_faults(infos: Sequence[SnapshotInfo], progress: Progress | None) -> dict[Path, Fault]:
    """Snapshots whose bytes changed or whose values are not finite.

    Every byte is read; memory holds one block at a time.

    Args:
        infos: Snapshots to read.
        progress: Called with the bytes read and the total after each block.
    """
    faults: dict[Path, Fault] = {}
    total, done = sum(info.header.data_bytes for info in infos), 0
    for info in infos:
        end = done + info.header.data_bytes
        try:
            bad = None
            for name, values in read_blocks(info.header):
                done += values.numel() * values.element_size()
                if progress is not None and done < total:
                    progress(done, total)
                if bad is None and values.is_floating_point() and not all_finite(values):
                    bad = name
            if bad is not None:
                message = f"{info.path} holds NaN or infinity in {bad}; remove it"
                faults[info.path] = "not finite", message
        except (ValueError, OSError) as error:
            faults[info.path] = "corrupted", str(error)
        done = end
    if progress is not None and total:
        progress(total, total)
    return faults


def duplicates(infos: Sequence[SnapshotInfo]) -> dict[Path, Fault]:
    """Snapshots that hold an average which an earlier one in the list holds too."""
    faults: dict[Path, Fault] = {}
    seen: dict[tuple[int, float], SnapshotInfo] = {}
    for info in infos:
        first = seen.setdefault((info.nimg, info.gamma), info)
        if first is not info:
            values = "the same" if first.header.digest == info.header.digest else "OTHER"
            faults[info.path] = (
                "duplicate",
                (
                    f"{info.path} and {first.path.name} both hold {info.content}"
                    f" at nimg = {info.nimg}, with {values} values; remove one"
                ),
            )
    return faults


def missing_averages(
    infos: Sequence[SnapshotInfo], thinned: set[tuple[int, float]]
) -> list[tuple[str, tuple[PowerFunction, ...]]]:
    """Averages that are missing, judged by the times and lengths of the others.

    Args:
        infos: Snapshots of the run, in whatever state. Raw weights have no cadence to keep.
        thinned: (nimg, gamma) of the snapshots that were deleted on purpose.

    Returns:
        A message and the missing averages, for each gap; consecutive times are one gap.
    """
    infos = [info for info in infos if not info.is_raw]
    present = {(info.nimg, info.gamma) for info in infos} | thinned
    times = np.array(sorted({t for t, _ in present}))
    gammas = sorted({g for _, g in present}, reverse=True)
    findings = []
    for t in times.tolist():
        lost = tuple(PowerFunction(g, t) for g in gammas if (t, g) not in present)
        if lost:
            widths = ", ".join(f"{p.sigma_rel:g}" for p in lost)
            message = f"sigma_rel {widths} is missing at nimg = {t}, where others are; restore it"
            findings.append((message, lost))
    from_start = all(info.start_nimg == 0 for info in infos)
    for gap in _gaps(np.append(0, times) if from_start else times):
        lost = tuple(PowerFunction(g, t) for t in gap for g in gammas)
        where = f"nimg = {gap[0]}"
        if len(gap) > 1:
            where = f"{len(gap)} times from nimg = {gap[0]} to {gap[-1]}"
        message = f"all averages are missing at {where}, where the cadence has a gap; restore them"
        findings.append((message, lost))
    return findings


def _gaps(times: NDArray[np.int64]) -> list[list[int]]:
    """Times that are missing from a regular cadence; none if the cadence is not regular.

    If the cadence is not a multiple of the batch size, steps differ by up to half.
    """
    steps = np.diff(times)
    if len(steps) < 3:
        return []
    cadence = float(np.median(steps))
    if np.mean(np.abs(steps / cadence - 1) < 0.5) < 0.6:
        return []
    return [
        [int(begin + step * j / round(step / cadence)) for j in range(1, round(step / cadence))]
        for begin, step in zip(times[:-1], steps, strict=True)
        if step > 1.75 * cadence
    ]
