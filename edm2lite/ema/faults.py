"""What can be wrong with the files of a folder of snapshots: one function per kind of fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edm2lite.ema.profile import PowerFunction
from edm2lite.ema.snapshot import Scanned, SnapshotInfo, tensor_shapes
from edm2lite.ema.stream import Progress
from edm2lite.tensorfile import read_blocks

Fault = tuple[str, str]
"""State of a file in a word or two, and a sentence for people."""


def header_fault(file: Scanned) -> Fault | None:
    if file.error is not None:
        return "damaged" if file.info is None else "truncated", str(file.error)
    if file.info is None:
        return "other format", (
            f"{file.path} is no snapshot (a model or a reconstruction, say) and is passed over;"
            " move it out of the folder"
        )
    return None


def strangers(infos: Sequence[SnapshotInfo]) -> dict[Path, Fault]:
    """Snapshots of other runs and models than most are of."""
    faults: dict[Path, Fault] = {}
    if not infos:
        return faults
    run = _most_common([info.run for info in infos])
    shapes = _most_common([tensor_shapes(info) for info in infos if info.run == run])
    for info in infos:
        if info.run != run:
            faults[info.path] = (
                "other run",
                (
                    f"{info.path} is of run {info.run}, the others are of {run}; move it out of the"
                    " folder"
                ),
            )
        elif tensor_shapes(info) != shapes:
            faults[info.path] = (
                "other shapes",
                (f"{info.path} holds other tensors than the others; move it out of the folder"),
            )
    return faults


def _most_common(values: Sequence[object]) -> object:
    return Counter(values).most_common(1)[0][0]


def byte_faults(infos: Sequence[SnapshotInfo], progress: Progress | None) -> dict[Path, Fault]:
    """Files whose bytes changed or whose values are not finite; memory of one block."""
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
                if bad is None and values.is_floating_point() and not _finite(values):
                    bad = name
            if bad is not None:
                faults[info.path] = (
                    "not finite",
                    (f"{info.path} holds NaN or infinity in {bad}; remove it"),
                )
        except (ValueError, OSError) as error:
            faults[info.path] = "corrupted", str(error)
        done = end
    if progress is not None and total:
        progress(total, total)
    return faults


def _finite(values: torch.Tensor) -> bool:
    # A sum is finite only if all terms are; it is several times faster than asking each.
    return bool(torch.isfinite(values.sum(dtype=torch.float64))) or bool(
        torch.isfinite(values).all()
    )


def duplicates(infos: Sequence[SnapshotInfo]) -> dict[Path, Fault]:
    faults: dict[Path, Fault] = {}
    seen: dict[tuple[int, float], SnapshotInfo] = {}
    for info in infos:
        first = seen.setdefault((info.nimg, info.gamma), info)
        if first is not info:
            values = "the same" if first.header.digest == info.header.digest else "OTHER"
            what = (
                f"{info.path} and {first.path.name} both hold sigma_rel {info.sigma_rel:g}"
                f" at nimg = {info.nimg}, with {values} values; remove one"
            )
            faults[info.path] = "duplicate", what
    return faults


def missing(
    ours: Sequence[SnapshotInfo], thinned: set[tuple[int, float]]
) -> list[tuple[str, tuple[PowerFunction, ...]]]:
    """Averages that the times and lengths of the others let expect; a stretch is one finding."""
    there = {(info.nimg, info.gamma) for info in ours} | thinned
    times = np.array(sorted({t for t, _ in there}))
    gammas = sorted({g for _, g in there}, reverse=True)
    findings = []
    for t in times.tolist():
        lost = tuple(PowerFunction(g, t) for g in gammas if (t, g) not in there)
        if lost:
            widths = ", ".join(f"{p.sigma_rel:g}" for p in lost)
            what = f"sigma_rel {widths} is missing at nimg = {t}, where others are; restore it"
            findings.append((what, lost))
    starts = 0 if all(info.start_nimg == 0 for info in ours) else None
    for stretch in _gaps(times if starts is None else np.append(starts, times)):
        lost = tuple(PowerFunction(g, t) for t in stretch for g in gammas)
        where = f"nimg = {stretch[0]}"
        if len(stretch) > 1:
            where = f"{len(stretch)} times from nimg = {stretch[0]} to {stretch[-1]}"
        what = f"all averages are missing at {where}, where the cadence has a gap; restore them"
        findings.append((what, lost))
    return findings


def _gaps(times: NDArray[np.int64]) -> list[list[int]]:
    """Times missing from a regular cadence; none if it is not regular.

    A cadence that is no multiple of the batch size makes steps differ by up to half.
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
