"""Plans: which averages to rebuild, from which snapshots, with which coefficients and error.

Coefficients and errors come from the headers of the files and from a small sample of their values,
which tells how the weights moved (:mod:`edm2lite.ema.sample`). Carrying a plan out is the work of
:mod:`edm2lite.ema.reconstruction`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edm2lite.ema.profile import PowerFunction, Profile
from edm2lite.ema.rounding import ROUNDING
from edm2lite.ema.sample import fit_model
from edm2lite.ema.snapshot import SnapshotInfo, list_snapshots
from edm2lite.ema.solve import Solution, solve_calibrated, solve_paper
from edm2lite.tensorfile import MODEL_FORMAT

SOLVERS = {"calibrated": solve_calibrated, "paper": solve_paper}


@dataclass(frozen=True)
class Reconstruction:
    """One rebuilt average, or the plan for it.

    Attributes:
        profile: What was asked for.
        sigma_rel: Relative width, as asked for (never rounded); None for other profiles.
        coefficients: [K], one per entry of ``inputs``; their sum is 1.
        predicted_error: Expected L2 error of the weights, relative to their L2 norm.
        inputs: The snapshots used.
        metadata: What the output file says of itself, provenance included.
        state_dict: The tensors, when not written to a file.
        path: The file, when written.
    """

    profile: Profile
    sigma_rel: float | None
    coefficients: NDArray[np.float64]
    predicted_error: float
    inputs: tuple[SnapshotInfo, ...] = field(repr=False)
    metadata: dict[str, str] = field(repr=False)
    state_dict: dict[str, Tensor] | None = field(default=None, repr=False)
    path: Path | None = None

    @property
    def gamma(self) -> float | None:
        """Exponent of a power function; None for other profiles."""
        return self.profile.gamma if isinstance(self.profile, PowerFunction) else None

    @property
    def nimg(self) -> int:
        return self.profile.nimg

    @property
    def sum_abs(self) -> float:
        """Sum of the absolute coefficients."""
        return float(np.abs(self.coefficients).sum())

    def stored_as(self, dtype: torch.dtype) -> Reconstruction:
        """The same with the rounding of results in ``dtype`` in its predicted error."""
        error = math.hypot(self.predicted_error, ROUNDING[str(dtype).removeprefix("torch.")])
        metadata = {**self.metadata, "predicted_error": repr(error)}
        return dataclasses.replace(self, predicted_error=error, metadata=metadata)


def plan_targets(
    source: str | Path | Sequence[SnapshotInfo],
    *,
    sigma_rel: float | Sequence[float] | None = None,
    gamma: float | Sequence[float] | None = None,
    profiles: Sequence[Profile] | None = None,
    nimg: int | None = None,
    solver: str = "calibrated",
    anywhere: bool = False,
) -> list[Reconstruction]:
    """The targets with their coefficients and predicted errors; a small part of the files is read.

    Args:
        source: A run, a folder of snapshots, or their list.
        sigma_rel: Relative widths, each in (0, 0.2887).
        gamma: Exponents >= 0, in place of ``sigma_rel``.
        profiles: Averages of any shape, in place of both; they say themselves where they end.
        nimg: End of the averages in images; some snapshot must end there. [default: the latest]
        solver: ``calibrated``, or ``paper`` (Algorithm 3).
        anywhere: Let averages end where no snapshot was saved: the weights since the last one are
            unknown, which the predicted error then includes.

    Raises:
        FileNotFoundError, ValueError: As :func:`list_snapshots`; unusable targets.
    """
    infos = list_snapshots(Path(source)) if isinstance(source, str | Path) else list(source)
    if sum(given is not None for given in (sigma_rel, gamma, profiles)) != 1:
        raise ValueError("give the averages as either sigma_rel, gamma or profiles, one of them")
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
    targets, widths = _targets(infos, sigma_rel, gamma, profiles, nimg)
    end = _check_end(infos, {target.nimg for target in targets}, anywhere)
    used = tuple(info for info in infos if 0 < info.nimg <= end)
    sources = [info.profile for info in used]
    rounding = [ROUNDING[info.dtype] for info in used]
    # Where the last snapshot is not the end, later ones tell how far the weights moved between.
    model = fit_model(used if used[-1].nimg == end else infos)
    solution = SOLVERS[solver](sources, targets, model, rounding)
    return [
        Reconstruction(
            profile=target,
            sigma_rel=width,
            coefficients=solution.coefficients[:, r],
            predicted_error=float(solution.predicted_error[r]),
            inputs=used,
            metadata=_metadata(target, width, used, solution, r, solver),
        )
        for r, (target, width) in enumerate(zip(targets, widths, strict=True))
    ]


def check_error(plans: Sequence[Reconstruction], max_error: float) -> None:
    """Refuse averages that the snapshots cannot give.

    Raises:
        ValueError: A predicted error is above ``max_error``; all such averages are named.
    """
    bad = [plan for plan in plans if not plan.predicted_error <= max_error]
    if not bad:
        return
    named = ", ".join(
        f"{plan.profile if plan.sigma_rel is None else f'{plan.sigma_rel:.6g}'}"
        f" ({plan.predicted_error:.1e})"
        for plan in bad
    )
    latest = max(info.nimg for info in bad[0].inputs)
    where = "" if latest == bad[0].nimg else f", where the latest snapshot is of {latest}"
    raise ValueError(
        f"predicted errors must be at most {max_error:g}, those of sigma_rel {named} at nimg ="
        f" {bad[0].nimg}{where} are larger; leave these out or raise the limit (--max-error)"
    )


def _targets(
    infos: Sequence[SnapshotInfo],
    sigma_rel: float | Sequence[float] | None,
    gamma: float | Sequence[float] | None,
    profiles: Sequence[Profile] | None,
    nimg: int | None,
) -> tuple[list[Profile], list[float | None]]:
    """Profiles and their widths; None where a width says nothing."""
    if profiles is not None:
        if nimg is not None:
            raise ValueError("profiles end where they say, leave nimg out")
        return list(profiles), [
            p.sigma_rel if isinstance(p, PowerFunction) else None for p in profiles
        ]
    end = max(info.nimg for info in infos) if nimg is None else nimg
    if sigma_rel is not None:
        widths = [float(s) for s in np.atleast_1d(np.asarray(sigma_rel))]
        return [PowerFunction.of_width(s, end) for s in widths], list(widths)
    powers = [PowerFunction(float(g), end) for g in np.atleast_1d(np.asarray(gamma))]
    return list(powers), [power.sigma_rel for power in powers]


def _check_end(infos: Sequence[SnapshotInfo], ends: set[int], anywhere: bool) -> int:
    """The one image count where all targets end, if some snapshot ends there or it may be anywhere.

    Raises:
        ValueError: Ends differ, or no snapshot is there.
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
    target: Profile,
    sigma_rel: float | None,
    used: Sequence[SnapshotInfo],
    solution: Solution,
    r: int,
    solver: str,
) -> dict[str, str]:
    inputs = [
        {"file": info.path.name, "digest": info.header.digest, "coefficient": float(x)}
        for info, x in zip(used, solution.coefficients[:, r], strict=True)
    ]
    length = {} if sigma_rel is None else {"sigma_rel": repr(sigma_rel)}
    if isinstance(target, PowerFunction):
        length["gamma"] = repr(target.gamma)
    return {
        "format": MODEL_FORMAT,
        "run": used[-1].run,
        "nimg": str(target.nimg),
        **length,
        "profile": repr(target),
        "solver": solver,
        "predicted_error": repr(float(solution.predicted_error[r])),
        "inputs": json.dumps(inputs, separators=(",", ":")),
        "tool": f"edm2lite {_version()}",
        **used[-1].extra,
    }


def _version() -> str:
    from edm2lite.version import __version__

    return __version__
