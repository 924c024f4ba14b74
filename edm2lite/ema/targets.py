"""Plans for rebuilding averages: from which snapshots, with which coefficients and error.

Coefficients and errors are computed from the headers of the files and from a small sample of their
values, which shows how the weights moved (:mod:`edm2lite.ema.calibration`). Plans are carried out
by :mod:`edm2lite.ema.building`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from edm2lite.ema.calibration import Progress, fit_model
from edm2lite.ema.folder import list_snapshots
from edm2lite.ema.profile import PowerFunction, Profile
from edm2lite.ema.requests import Log, Request, check_solver, requests_for
from edm2lite.ema.result import Reconstruction
from edm2lite.ema.rounding import ROUNDING
from edm2lite.ema.selection import select_sources
from edm2lite.ema.snapshot import SnapshotInfo
from edm2lite.ema.solve import REVISION, Solution
from edm2lite.ema.solvers import SOLVERS, usable
from edm2lite.tensorfile import ADAPTER_FORMAT, MODEL_FORMAT
from edm2lite.version import __version__

MAX_ERROR = 0.02
"""Default limit of predicted errors, relative to the norm of the weights."""


def plan_targets(
    source: str | Path | Sequence[SnapshotInfo],
    *,
    sigma_rel: float | Sequence[float] | None = None,
    gamma: float | Sequence[float] | None = None,
    profiles: Profile | Sequence[Profile] | None = None,
    decay: str | Sequence[str] | None = None,
    lr_log: Log = None,
    nimg: int | None = None,
    solver: str = "calibrated",
    anywhere: bool = False,
    progress: Progress | None = None,
) -> list[Reconstruction]:
    """Plans for rebuilding averages, with coefficients and predicted errors.

    Give one of ``sigma_rel``, ``gamma``, ``profiles`` and ``decay``. Few parts of files are read.

    Args:
        source: A run, a folder of snapshots, or a list of snapshots.
        sigma_rel: EMA lengths, each in (0, 0.2887).
        gamma: Exponents >= 0.
        profiles: Averages of any shape. Each determines its own end, so ``nimg`` is not given.
        decay: Names of decays of the learning rate to emulate, such as ``cosine:0.2``, see
            :mod:`edm2lite.ema.decays`.
        lr_log: CSV file with ``nimg`` and ``lr``, the rates that decays are measured against, or
            "none" for a constant rate. [default: what the run recorded in ``stats.jsonl``]
        nimg: End of the averages in images; a snapshot must end there. [default: the latest]
        solver: ``calibrated``; ``paper`` (Algorithm 3), which uses averages only; or ``wsm``, the
            merging rule, which uses raw checkpoints only.
        anywhere: Whether averages may end where no snapshot was saved. The weights since the last
            snapshot are unknown then, which the predicted error includes.
        progress: Called with the number of files read and the total; first for the headers of all
            files, then for those of which values are read.

    Returns:
        One plan per average, in the order in which they are given.

    Raises:
        FileNotFoundError: If there are no snapshots.
        ValueError: If an average is out of range, the snapshots do not belong together, or the
            learning rate was 0 within a decay.

    Example:
        >>> import tempfile, torch
        >>> from edm2lite.ema import PowerFunctionEMA
        >>> ema, run = PowerFunctionEMA({"w": torch.ones(50)}), tempfile.mkdtemp()
        >>> ema.update(nimg=64)
        >>> _ = ema.save_snapshots(run)
        >>> tracked, other = plan_targets(run, sigma_rel=[0.10, 0.20])
        >>> tracked.predicted_error < other.predicted_error
        True
    """
    if isinstance(source, str | Path):
        infos = list_snapshots(Path(source), progress)
    else:
        infos = list(source)
    requests = requests_for(
        source, max((info.nimg for info in infos), default=0), sigma_rel=sigma_rel, gamma=gamma,
        profiles=profiles, decay=decay, lr_log=lr_log, nimg=nimg,
    )  # fmt: skip
    check_solver(solver, SOLVERS, requests)
    targets = [request.profile for request in requests]
    stored, used, solution = _solve(infos, targets, solver, anywhere, progress)
    return [
        Reconstruction(
            profile=request.profile,
            sigma_rel=request.sigma_rel,
            coefficients=solution.coefficients[:, r],
            predicted_error=float(solution.predicted_error[r]),
            inputs=used,
            metadata=_metadata(request, used, solution, r, solver),
            num_stored=stored,
            decay=request.decay,
        )
        for r, request in enumerate(requests)
    ]


def _solve(
    infos: Sequence[SnapshotInfo],
    targets: Sequence[Profile],
    solver: str,
    anywhere: bool,
    progress: Progress | None,
) -> tuple[int, tuple[SnapshotInfo, ...], Solution]:
    """Number of snapshots up to the end of the targets, those that are used, their coefficients."""
    end = _check_end(infos, {target.nimg for target in targets}, anywhere)
    stored = [info for info in infos if 0 < info.nimg <= end]
    stored = [stored[i] for i in usable(solver, [info.profile for info in stored])]
    used = tuple(stored[i] for i in select_sources([info.profile for info in stored]))
    # If no snapshot is at the end, later ones show how far the weights moved until then.
    model = fit_model(stored if used[-1].nimg == end else infos, progress)
    sources = [info.profile for info in used]
    rounding = [ROUNDING[info.dtype] for info in used]
    return len(stored), used, SOLVERS[solver](sources, targets, model, rounding)


def check_error(plans: Sequence[Reconstruction], max_error: float) -> None:
    """Refuse averages that cannot be rebuilt accurately.

    Args:
        plans: Plans from :func:`plan_targets`.
        max_error: Largest acceptable predicted error.

    Raises:
        ValueError: If a predicted error is above ``max_error``; all such averages are named.
    """
    bad = [plan for plan in plans if not plan.predicted_error <= max_error]
    if not bad:
        return
    named = ", ".join(
        f"{Request(p.profile, p.sigma_rel, p.decay).name} ({p.predicted_error:.1e})" for p in bad
    )
    what = "decay" if bad[0].decay else "sigma_rel"
    latest = max(info.nimg for info in bad[0].inputs)
    where = "" if latest == bad[0].nimg else f", where the latest snapshot is of {latest}"
    raise ValueError(
        f"predicted errors must be at most {max_error:g}, those of {what} {named} at nimg ="
        f" {bad[0].nimg}{where} are larger; leave these out or raise the limit (--max-error,"
        " max_error)"
    )


def _check_end(infos: Sequence[SnapshotInfo], ends: set[int], anywhere: bool) -> int:
    """The image count at which all targets end.

    Raises:
        ValueError: If ends differ, or no snapshot is there and ``anywhere`` is False.
    """
    times = sorted({info.nimg for info in infos})
    if not ends:
        raise ValueError("give at least one average to rebuild, got none")
    if len(ends) > 1:
        raise ValueError(f"targets of one call must end together, got {sorted(ends)}; call twice")
    (end,) = ends
    if end not in times and not (anywhere and end > times[0]):
        raise ValueError(
            f"an average can end only where a snapshot was saved, none is at nimg = {end}; the"
            f" nearest is {min(times, key=lambda t: abs(t - end))}"
        )
    return end


def _metadata(
    request: Request,
    used: Sequence[SnapshotInfo],
    solution: Solution,
    r: int,
    solver: str,
) -> dict[str, str]:
    inputs = [
        {"file": info.path.name, "digest": info.header.digest, "coefficient": float(x)}
        for info, x in zip(used, solution.coefficients[:, r], strict=True)
    ]
    target, sigma_rel = request.profile, request.sigma_rel
    length = {} if sigma_rel is None else {"sigma_rel": repr(sigma_rel)}
    length |= {"decay": request.decay} if request.decay else {}
    if isinstance(target, PowerFunction):
        length["gamma"] = repr(target.gamma)
    return {
        "format": ADAPTER_FORMAT if "adapter" in used[-1].extra else MODEL_FORMAT,
        "run": used[-1].run,
        "nimg": str(target.nimg),
        **length,
        "profile": repr(target),
        "solver": solver,
        **({"solver_revision": REVISION} if solver == "calibrated" else {}),
        "predicted_error": repr(float(solution.predicted_error[r])),
        "inputs": json.dumps(inputs, separators=(",", ":")),
        "tool": f"edm2lite {__version__}",
        **used[-1].extra,
    }
