"""Examines a folder of snapshots: what is wrong in it, and how much each loss costs.

:func:`examine` looks at every file, finds what cannot be used and what is missing, and predicts how
much each loss adds to the error of reconstructions. It never raises for the state of a file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edm2lite.ema.calibration import fit_model
from edm2lite.ema.faults import (
    Fault,
    abandoned_snapshots,
    byte_faults,
    duplicates,
    foreign_snapshots,
    header_fault,
    missing_averages,
)
from edm2lite.ema.folder import ScannedFile, scan_snapshots, snapshot_folder, tensor_shapes
from edm2lite.ema.profile import PowerFunction, Stored
from edm2lite.ema.rounding import ROUNDING
from edm2lite.ema.selection import select_sources
from edm2lite.ema.snapshot import SnapshotInfo
from edm2lite.ema.solve import solve_calibrated
from edm2lite.ema.stream import Progress
from edm2lite.ema.trajectory import TrajectoryModel
from edm2lite.jsonlines import read_lines

logger = logging.getLogger(__name__)

THINNED = "thinned.jsonl"
"""File beside the snapshots with one line for each that was deleted on purpose."""


@dataclass(frozen=True)
class Finding:
    """One problem of a folder.

    Attributes:
        state: damaged, truncated, corrupted, not finite, other run, other course, other shapes,
            other format, duplicate, or missing.
        message: One sentence for the user: what the problem is, and what to do.
        path: The file; None for missing ones.
        lost: Averages that cannot be used because of it.
        sigma_rel: Length whose predicted error grows most by it; None if nothing is lost.
        error: Predicted error of that length.
        error_if_intact: Predicted error of that length if nothing were lost by this problem.

    Example:
        >>> finding = Finding("missing", "...", sigma_rel=0.03, error=0.02, error_if_intact=0.005)
        >>> finding.cost
        0.015
    """

    state: str
    message: str
    path: Path | None = None
    lost: tuple[Stored, ...] = ()
    sigma_rel: float | None = None
    error: float | None = None
    error_if_intact: float | None = None

    @property
    def cost(self) -> float:
        """What the loss adds to the predicted error; 0 if nothing is lost."""
        return 0.0 if self.error is None else self.error - (self.error_if_intact or 0.0)


@dataclass(frozen=True)
class Report:
    """The state of a folder.

    Attributes:
        files: All safetensors files by name.
        intact: Snapshots that can be used together, by time and exponent.
        findings: The problems.
        sigma_rels: [R] lengths for which errors are predicted.
        errors: [R] predicted errors at the latest intact snapshot; empty if there is none.
        num_thinned: Number of snapshots that were deleted on purpose.

    Example:
        >>> report = Report((), (), (Finding("missing", "..."),), np.array([0.10]))
        >>> "all is well" if not report.findings else report.findings[0].state
        'missing'
    """

    files: tuple[ScannedFile, ...]
    intact: tuple[SnapshotInfo, ...]
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
    headers: Callable[[int, int], object] | None = None,
) -> Report:
    """Look at every file of a run or folder.

    Args:
        source: A run, or a folder of snapshots.
        sigma_rels: Lengths whose errors are predicted, each in (0, 0.2887).
        quick: Whether to read headers only. Altered bytes and values that are not finite then go
            unnoticed.
        progress: Called with the bytes read and the total after each block.
        headers: Called with the number of headers read and of all files after each file.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If a length is out of range.

    Example:
        >>> import tempfile, torch
        >>> from edm2lite.ema import PowerFunctionEMA
        >>> weights, folder = {"w": torch.randn(50)}, tempfile.mkdtemp()
        >>> ema = PowerFunctionEMA(weights)
        >>> for step in range(1, 5):
        ...     weights["w"] += 0.01 * torch.randn(50)
        ...     ema.update(64 * step)
        ...     paths = ema.save_snapshots(folder)
        >>> _ = paths[0].write_bytes(paths[0].read_bytes()[:-1])
        >>> report = examine(folder, [0.07, 0.15])
        >>> len(report.intact), [finding.state for finding in report.findings]
        (7, ['truncated'])
    """
    files = scan_snapshots(Path(source), headers)
    faults = {file.path: fault for file in files if (fault := header_fault(file)) is not None}
    readable = [file.info for file in files if file.info and file.path not in faults]
    faults |= foreign_snapshots(readable)
    faults |= abandoned_snapshots([i for i in readable if i.path not in faults])
    if not quick:
        faults |= byte_faults([i for i in readable if i.path not in faults], progress)
    faults |= duplicates([i for i in readable if i.path not in faults])
    intact = [info for info in readable if info.path not in faults]
    intact.sort(key=lambda info: (info.nimg, -info.gamma))
    of_run = [f.info for f in files if f.info and _is_of_run(f.info, intact)]
    thinned = _thinned(snapshot_folder(Path(source)))
    gaps = [
        Finding("missing", message, None, lost)
        for message, lost in missing_averages(of_run, thinned)
    ]
    findings = [_describe(faults[f.path], f, of_run, intact) for f in files if f.path in faults]
    report = Report(
        tuple(files),
        tuple(intact),
        (*findings, *gaps),
        np.asarray(sigma_rels),
        num_thinned=len(thinned),
    )
    return _with_costs(report) if intact else report


def predict(
    infos: Sequence[SnapshotInfo],
    sigma_rels: NDArray[np.float64],
    model: TrajectoryModel,
    extra: Sequence[Stored] = (),
    nimg: int | None = None,
) -> NDArray[np.float64]:
    """Predicted errors [R] of lengths that are rebuilt from given snapshots.

    Args:
        infos: Intact snapshots, at least one.
        sigma_rels: [R] EMA lengths.
        model: Trajectory model of the run, from :func:`edm2lite.ema.calibration.fit_model`.
        extra: Further averages that are assumed to be stored in the type of the last snapshot.
        nimg: End of the rebuilt averages. [default: the latest of all]

    Example:
        >>> import tempfile, torch
        >>> from edm2lite.ema import PowerFunctionEMA, list_snapshots
        >>> from edm2lite.ema.planning import random_walk
        >>> ema, folder = PowerFunctionEMA({"w": torch.ones(3)}, [0.10]), tempfile.mkdtemp()
        >>> ema.update(nimg=1000)
        >>> _ = ema.save_snapshots(folder)
        >>> model = random_walk(1000, 1000)
        >>> errors = predict(list_snapshots(folder), np.array([0.05, 0.10]), model)
        >>> bool(errors[0] > 0.1), bool(errors[1] < 1e-6)
        (True, True)
    """
    sources = [*(info.profile for info in infos), *extra]
    rounding = [ROUNDING[info.dtype] for info in infos] + [ROUNDING[infos[-1].dtype]] * len(extra)
    end = max(p.nimg for p in sources) if nimg is None else nimg
    targets = [PowerFunction.of_width(float(s), end) for s in sigma_rels]
    used = select_sources(sources)
    chosen, errors = [sources[i] for i in used], [rounding[i] for i in used]
    return solve_calibrated(chosen, targets, model, errors).predicted_error


def _with_costs(report: Report) -> Report:
    """The report with predicted errors, overall and for each loss."""
    try:
        model = fit_model(report.intact)
    except ValueError as error:  # values that are not finite, where only headers were checked
        return replace(report, findings=(*report.findings, Finding("not finite", str(error))))
    errors = predict(report.intact, report.sigma_rels, model)
    errors_at: dict[int, NDArray[np.float64]] = {report.intact[-1].nimg: errors}
    findings = []
    for finding in report.findings:
        if finding.lost:
            end = max(p.nimg for p in (*finding.lost, report.intact[-1].profile))
            if end not in errors_at:
                errors_at[end] = predict(report.intact, report.sigma_rels, model, nimg=end)
            restored = predict(report.intact, report.sigma_rels, model, finding.lost, end)
            r = int(np.argmax(errors_at[end] - restored))
            finding = replace(
                finding,
                sigma_rel=float(report.sigma_rels[r]),
                error=float(errors_at[end][r]),
                error_if_intact=float(restored[r]),
            )
        findings.append(finding)
    return replace(report, errors=errors, findings=tuple(findings))


def _is_of_run(info: SnapshotInfo, intact: Sequence[SnapshotInfo]) -> bool:
    """Whether a snapshot, in whatever state, belongs to the run of the intact ones."""
    if not intact:
        return False
    return info.run == intact[0].run and tensor_shapes(info) == tensor_shapes(intact[0])


def _describe(
    fault: Fault, file: ScannedFile, of_run: Sequence[SnapshotInfo], intact: Sequence[SnapshotInfo]
) -> Finding:
    info = file.info
    available = {(i.nimg, i.gamma) for i in intact}
    lost = info is not None and info in of_run and (info.nimg, info.gamma) not in available
    return Finding(*fault, file.path, (info.profile,) if info is not None and lost else ())


def _thinned(folder: Path) -> set[tuple[int, float]]:
    """(nimg, gamma) of the snapshots that were deleted on purpose."""
    lines, notices = read_lines(folder / THINNED)
    for notice in notices:
        logger.warning("%s", notice)
    whole = [line for line in lines if {"nimg", "gamma"} <= line.keys()]
    return {(int(line["nimg"]), float(line["gamma"])) for line in whole}
