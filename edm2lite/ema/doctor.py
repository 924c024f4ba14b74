"""What is wrong in a folder of snapshots, and what it costs.

:func:`examine` looks at every file, finds what cannot be used and what is not there, and predicts
how much each loss adds to the error of reconstructions. It never raises for the state of a file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edm2lite.ema.faults import (
    Fault,
    byte_faults,
    duplicates,
    header_fault,
    missing,
    strangers,
)
from edm2lite.ema.profile import PowerFunction
from edm2lite.ema.rounding import ROUNDING
from edm2lite.ema.sample import fit_model
from edm2lite.ema.snapshot import (
    Scanned,
    SnapshotInfo,
    scan_snapshots,
    snapshot_folder,
    tensor_shapes,
)
from edm2lite.ema.solve import solve_calibrated
from edm2lite.ema.stream import Progress
from edm2lite.ema.trajectory import TrajectoryModel

THINNED = "thinned.jsonl"
"""Beside the snapshots: one line for each that was removed on purpose (see ``thinning``)."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        state: damaged, truncated, corrupted, not finite, other run, other shapes, other format,
            duplicate, or missing.
        what: One sentence for people: what it is, and what to do.
        path: The file; None for missing ones.
        lost: Averages that cannot be used because of it.
        sigma_rel: The length whose error grows most by it; None if nothing is lost.
        error: Predicted error of that length.
        error_if_sound: The same if what is lost were there.
    """

    state: str
    what: str
    path: Path | None = None
    lost: tuple[PowerFunction, ...] = ()
    sigma_rel: float | None = None
    error: float | None = None
    error_if_sound: float | None = None

    @property
    def cost(self) -> float:
        """What the loss adds to the predicted error; 0 if nothing is lost."""
        return 0.0 if self.error is None else self.error - (self.error_if_sound or 0.0)


@dataclass(frozen=True)
class Report:
    """State of a folder.

    Attributes:
        files: All safetensors files by name.
        sound: Snapshots that can be used together, by time and exponent.
        findings: What is wrong.
        sigma_rels: [R] lengths for which errors are predicted.
        errors: [R] predicted errors at the latest sound snapshot; empty if there is none.
        num_thinned: Snapshots that were removed on purpose.
    """

    files: tuple[Scanned, ...]
    sound: tuple[SnapshotInfo, ...]
    findings: tuple[Finding, ...]
    sigma_rels: NDArray[np.float64]
    errors: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    num_thinned: int = 0


def examine(
    source: str | Path,
    sigma_rels: Sequence[float] | NDArray[np.float64],
    *,
    quick: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Look at every file of a run or folder.

    Args:
        source: A run, or a folder of snapshots.
        sigma_rels: Lengths whose errors are predicted, each in (0, 0.2887).
        quick: Read headers only: altered bytes and values that are not finite go unnoticed.
        progress: Called with (bytes read, bytes in all) after each block.

    Raises:
        FileNotFoundError: There is no folder.
        ValueError: Unusable lengths.
    """
    files = scan_snapshots(Path(source))
    faults = {file.path: fault for file in files if (fault := header_fault(file)) is not None}
    readable = [file.info for file in files if file.info and file.path not in faults]
    faults |= strangers(readable)
    if not quick:
        faults |= byte_faults([i for i in readable if i.path not in faults], progress)
    faults |= duplicates([i for i in readable if i.path not in faults])
    sound = [info for info in readable if info.path not in faults]
    sound.sort(key=lambda info: (info.nimg, -info.gamma))
    ours = [f.info for f in files if f.info and _is_ours(f.info, sound)]
    thinned = _thinned(snapshot_folder(Path(source)))
    gaps = [Finding("missing", what, None, lost) for what, lost in missing(ours, thinned)]
    findings = [_describe(faults[f.path], f, ours, sound) for f in files if f.path in faults]
    found = [*findings, *gaps]
    report = Report(
        tuple(files), tuple(sound), tuple(found), np.asarray(sigma_rels), num_thinned=len(thinned)
    )
    return _with_costs(report) if sound else report


def predict(
    infos: Sequence[SnapshotInfo],
    sigma_rels: NDArray[np.float64],
    model: TrajectoryModel,
    extra: Sequence[PowerFunction] = (),
    nimg: int | None = None,
) -> NDArray[np.float64]:
    """[R] predicted errors of lengths rebuilt from ``infos``, and ``extra`` stored like them.

    Args:
        infos: Sound snapshots, at least one.
        sigma_rels: [R] relative widths.
        model: From :func:`edm2lite.ema.sample.fit_model`.
        extra: Further averages as if they were there.
        nimg: End of the averages. [default: the latest of all]
    """
    sources = [*(info.profile for info in infos), *extra]
    rounding = [ROUNDING[info.dtype] for info in infos] + [ROUNDING[infos[-1].dtype]] * len(extra)
    end = max(p.nimg for p in sources) if nimg is None else nimg
    targets = [PowerFunction.of_width(float(s), end) for s in sigma_rels]
    return solve_calibrated(sources, targets, model, rounding).predicted_error


def _with_costs(report: Report) -> Report:
    """The report with predicted errors, in all and for each thing lost."""
    try:
        model = fit_model(report.sound)
    except ValueError as error:  # values that are not finite, where only headers were checked
        return replace(report, findings=(*report.findings, Finding("not finite", str(error))))
    errors = predict(report.sound, report.sigma_rels, model)
    without_any: dict[int, NDArray[np.float64]] = {report.sound[-1].nimg: errors}
    findings = []
    for finding in report.findings:
        if finding.lost:
            end = max(p.nimg for p in (*finding.lost, report.sound[-1].profile))
            if end not in without_any:
                without_any[end] = predict(report.sound, report.sigma_rels, model, nimg=end)
            without = without_any[end]
            whole = predict(report.sound, report.sigma_rels, model, finding.lost, end)
            r = int(np.argmax(without - whole))
            finding = replace(
                finding,
                sigma_rel=float(report.sigma_rels[r]),
                error=float(without[r]),
                error_if_sound=float(whole[r]),
            )
        findings.append(finding)
    return replace(report, errors=errors, findings=tuple(findings))


def _is_ours(info: SnapshotInfo, sound: Sequence[SnapshotInfo]) -> bool:
    """Whether a snapshot, in whatever state, belongs to the run."""
    return (
        bool(sound) and info.run == sound[0].run and tensor_shapes(info) == tensor_shapes(sound[0])
    )


def _describe(
    fault: Fault, file: Scanned, ours: Sequence[SnapshotInfo], sound: Sequence[SnapshotInfo]
) -> Finding:
    info = file.info
    replaced = {(s.nimg, s.gamma) for s in sound}
    lost = info is not None and info in ours and (info.nimg, info.gamma) not in replaced
    return Finding(*fault, file.path, (info.profile,) if info is not None and lost else ())


def _thinned(folder: Path) -> set[tuple[int, float]]:
    """(nimg, gamma) of the snapshots that were removed on purpose."""
    path = folder / THINNED
    if not path.is_file():
        return set()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {(int(line["nimg"]), float(line["gamma"])) for line in lines}
