"""Averages of any length from the snapshots of a run: all in one pass, or one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, overload

import numpy as np

from edm2lite.ema.building import build
from edm2lite.ema.profile import Profile
from edm2lite.ema.requests import Log
from edm2lite.ema.result import Reconstruction
from edm2lite.ema.snapshot import SnapshotInfo
from edm2lite.ema.stream import Progress
from edm2lite.ema.targets import MAX_ERROR, check_error, plan_targets

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

Snapshots = str | Path | Sequence[SnapshotInfo]
"""A run, a folder of snapshots, or a list of snapshots."""


class _Options(TypedDict, total=False):
    lr_log: Log
    nimg: int | None
    out: str | Path | None
    dtype: torch.dtype | str
    solver: str
    max_error: float
    progress: Progress | None


@overload
def reconstruct(
    source: Snapshots, *, sigma_rel: float, **options: Unpack[_Options]
) -> Reconstruction: ...
@overload
def reconstruct(
    source: Snapshots, *, gamma: float, **options: Unpack[_Options]
) -> Reconstruction: ...
@overload
def reconstruct(
    source: Snapshots, *, profiles: Profile, **options: Unpack[_Options]
) -> Reconstruction: ...
@overload
def reconstruct(
    source: Snapshots, *, decay: str, **options: Unpack[_Options]
) -> Reconstruction: ...
@overload
def reconstruct(
    source: Snapshots,
    *,
    sigma_rel: Sequence[float] | None = None,
    gamma: Sequence[float] | None = None,
    profiles: Sequence[Profile] | None = None,
    decay: list[str] | tuple[str, ...] | None = None,
    **options: Unpack[_Options],
) -> list[Reconstruction]: ...
def reconstruct(
    source: Snapshots,
    *,
    sigma_rel: float | Sequence[float] | None = None,
    gamma: float | Sequence[float] | None = None,
    profiles: Profile | Sequence[Profile] | None = None,
    decay: str | Sequence[str] | None = None,
    lr_log: Log = None,
    nimg: int | None = None,
    out: str | Path | None = None,
    dtype: torch.dtype | str = "float32",
    solver: str = "calibrated",
    max_error: float = MAX_ERROR,
    progress: Progress | None = None,
) -> Reconstruction | list[Reconstruction]:
    """Rebuild one or several averages from snapshots.

    Give the averages by one of ``sigma_rel``, ``gamma``, ``profiles`` and ``decay``. All of them
    are rebuilt in one pass over the files, and all are in memory at the end unless ``out`` is
    given; :func:`reconstruct_each` holds one at a time.

    Args:
        source: A run, a folder of snapshots, or a list of snapshots.
        sigma_rel: EMA lengths, each in (0, 0.2887).
        gamma: Exponents >= 0.
        profiles: Averages of any shape. Each determines its own end, so ``nimg`` is not given.
        decay: Decays of the learning rate to emulate, such as ``cosine:0.2`` for the last fifth of
            the run, see :mod:`edm2lite.ema.decays`.
        lr_log: CSV file with ``nimg`` and ``lr``, the rates that decays are measured against, or
            "none" for a constant rate. [default: what the run recorded in ``stats.jsonl``]
        nimg: End of the averages in images; a snapshot must end there. [default: the latest]
        out: Folder for the files, named ``ema-<sigma_rel>-<nimg>.safetensors`` or
            ``decay-<name>-<nimg>.safetensors``. They are complete when the call returns. Without it
            the results are in memory.
        dtype: Floating-point type of the results; its rounding is in their predicted errors.
        solver: ``calibrated``, or ``paper`` (Algorithm 3).
        max_error: Largest acceptable predicted error of the weights, relative to their norm.
        progress: Called with the bytes read and the total after each block.

    Returns:
        One result if one average is given as such (not in a list), else a list in the order in
        which they are given. A result has its ``state_dict``, or its ``path`` if ``out`` is given.

    Raises:
        FileNotFoundError: If there are no snapshots.
        ValueError: If an average is out of range, a predicted error exceeds ``max_error``, a
            snapshot is damaged, or ``out`` is the folder of the snapshots. No output file is
            written then.

    Example:
        >>> import tempfile, torch
        >>> from edm2lite.ema import PowerFunctionEMA
        >>> weights, run = {"w": torch.full((3,), 50.0)}, tempfile.mkdtemp()
        >>> ema = PowerFunctionEMA(weights)  # tracks sigma_rel 0.05 and 0.10
        >>> for step in range(1, 9):
        ...     weights["w"] += 1
        ...     ema.update(64 * step)
        ...     _ = ema.save_snapshots(f"{run}/snapshots")
        >>> result = reconstruct(run, sigma_rel=0.07)
        >>> bool(result.state_dict["w"][0] < 58), result.predicted_error < 0.02
        (True, True)
        >>> [result.path.name for result in reconstruct(run, gamma=[5, 7], out=f"{run}/ema")]
        ['ema-0.12372-0000000512.safetensors', 'ema-0.09938-0000000512.safetensors']
        >>> reconstruct(run, decay="linear:50%", out=f"{run}/ema").path.name
        'decay-linear-0.5-0000000512.safetensors'
    """
    plans = plan_targets(
        source, sigma_rel=sigma_rel, gamma=gamma, profiles=profiles, decay=decay, lr_log=lr_log,
        nimg=nimg, solver=solver,
    )  # fmt: skip
    plans = _accurate(plans, dtype, max_error)
    results = build(plans, out=out, dtype=dtype, progress=progress)
    given = next(value for value in (sigma_rel, gamma, profiles, decay) if value is not None)
    is_one = isinstance(given, str) or (
        not isinstance(given, Sequence) and np.ndim(given) == 0  # type: ignore[arg-type]
    )
    return results[0] if is_one else results


def reconstruct_each(
    source: Snapshots,
    *,
    sigma_rel: Sequence[float] | None = None,
    gamma: Sequence[float] | None = None,
    profiles: Sequence[Profile] | None = None,
    decay: Sequence[str] | None = None,
    lr_log: Log = None,
    nimg: int | None = None,
    dtype: torch.dtype | str = "float32",
    solver: str = "calibrated",
    max_error: float = MAX_ERROR,
    progress: Progress | None = None,
) -> Iterator[Reconstruction]:
    """Rebuild averages one after the other, with one of them in memory at a time.

    The files are read once for every average. Arguments and errors are those of
    :func:`reconstruct`; they are checked at the call, before the first average is asked for.

    Returns:
        An iterator over results with a ``state_dict``.

    Example:
        >>> import tempfile, torch
        >>> from edm2lite.ema import PowerFunctionEMA
        >>> ema, run = PowerFunctionEMA({"w": torch.ones(3)}), tempfile.mkdtemp()
        >>> ema.update(nimg=64)
        >>> _ = ema.save_snapshots(run)
        >>> for result in reconstruct_each(run, sigma_rel=[0.05, 0.10]):
        ...     print(result.sigma_rel, result.state_dict)
        0.05 {'w': tensor([1., 1., 1.])}
        0.1 {'w': tensor([1., 1., 1.])}
    """
    plans = plan_targets(
        source, sigma_rel=sigma_rel, gamma=gamma, profiles=profiles, decay=decay, lr_log=lr_log,
        nimg=nimg, solver=solver,
    )  # fmt: skip
    plans = _accurate(plans, dtype, max_error)
    return (build([plan], dtype=dtype, progress=progress)[0] for plan in plans)


def _accurate(
    plans: Sequence[Reconstruction], dtype: torch.dtype | str, max_error: float
) -> list[Reconstruction]:
    """The plans of results in ``dtype``, all of which must be within ``max_error``."""
    stored = [plan.stored_as(dtype) for plan in plans]
    check_error(stored, max_error)
    return stored
