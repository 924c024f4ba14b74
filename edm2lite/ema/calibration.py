"""Calibrates the trajectory model of a run on a small sample of the values in its snapshots."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from edm2lite.ema.casts import STORAGE
from edm2lite.ema.rounding import ROUNDING
from edm2lite.ema.selection import select_sources
from edm2lite.ema.snapshot import SnapshotInfo
from edm2lite.ema.trajectory import TrajectoryModel
from edm2lite.ema.trajectory_fit import fit_trajectory, spread

Progress = Callable[[int, int], object]
"""Called with the number of files read so far and of all."""

_PLACES, _PLACE_LENGTH = 96, 128  # places in a file, and consecutive values read at each


def fit_model(infos: Sequence[SnapshotInfo], progress: Progress | None = None) -> TrajectoryModel:
    """The model of how the weights moved, fitted to a random sample of the stored values.

    Args:
        infos: Snapshots of one run, by time.
        progress: Called with the number of files read and the total after each file.

    Raises:
        ValueError: If a sampled value is not finite: that file is damaged.

    Example:
        >>> import tempfile, torch
        >>> from edm2lite.ema import PowerFunctionEMA, list_snapshots
        >>> weights, folder = {"w": torch.ones(50)}, tempfile.mkdtemp()
        >>> ema = PowerFunctionEMA(weights)
        >>> for step in range(1, 6):
        ...     weights["w"] += 0.1 * torch.randn(50)
        ...     ema.update(64 * step)
        ...     _ = ema.save_snapshots(folder)
        >>> fit_model(list_snapshots(folder)).nimg
        320
    """
    shown = spread(np.array([info.nimg for info in infos]))
    read = np.union1d(shown, select_sources([info.profile for info in infos]))
    sample = read_sample([infos[i] for i in read], progress)
    fitted = [infos[i] for i in shown]
    model = fit_trajectory(
        [info.profile for info in fitted],
        sample[np.searchsorted(read, shown)],
        [ROUNDING[info.dtype] for info in fitted],
        updates=_updates(infos),
    )
    return model.with_sample([infos[i].profile for i in read], sample)


def _updates(infos: Sequence[SnapshotInfo]) -> int:
    """Number of updates of the tracker up to the end of the last snapshot; 0 if none tracked."""
    tracked = [info for info in infos if info.history]
    if not tracked:
        return 0
    count, last = sum(count for _, count in tracked[-1].history), tracked[-1]
    return count if last is infos[-1] else round(count * infos[-1].nimg / last.nimg)


def read_sample(
    infos: Sequence[SnapshotInfo], progress: Progress | None = None
) -> NDArray[np.float64]:
    """Values [K, n] of the same random floating-point elements of every file.

    The choice is always the same for a model. Of a small model, every element is read exactly once:
    one that is drawn twice adds nothing, and the fit would take the missing rank of the sample for
    a direction in which nothing moves.

    Args:
        infos: K snapshots of one run.
        progress: Called with the number of files read and the total after each file.

    Raises:
        ValueError: If a value is not finite: that file is damaged.
    """
    rng = np.random.default_rng(0)
    tensors = [(n, s) for n, s in infos[-1].header.tensors.items() if s.is_floating_point]
    sizes = np.array([spec.numel for _, spec in tensors], dtype=np.float64)
    small = sizes.sum() <= _PLACES * _PLACE_LENGTH
    places = [(name, 0, spec.numel) for name, spec in tensors if small]
    for i in rng.choice(len(tensors), 0 if small else _PLACES, p=sizes / sizes.sum()):
        name, spec = tensors[i]
        count = min(_PLACE_LENGTH, spec.numel)
        places.append((name, int(rng.integers(spec.numel - count + 1)), count))
    rows = []
    for info in infos:
        rows.append(_values_at(info, places))
        if progress is not None:
            progress(len(rows), len(infos))
    sample = np.stack(rows)
    bad = [info.path for info, row in zip(infos, sample, strict=True) if not np.isfinite(row).all()]
    if bad:
        raise ValueError(
            f"{bad[0]} must hold finite values and does not; move it out of the folder"
        )
    return sample


def _values_at(info: SnapshotInfo, places: Sequence[tuple[str, int, int]]) -> NDArray[np.float64]:
    """float64 values of one file at some places, each given as (tensor, first element, count)."""
    specs = [info.header.tensors[name] for name, _, _ in places]
    values = []
    with ExitStack() as stack:
        used = {spec.file: info.header.sources[spec.file] for spec in specs}
        files = {i: stack.enter_context(open(path, "rb", buffering=0)) for i, path in used.items()}
        read = [
            os.pread(files[s.file].fileno(), count * s.itemsize, s.offset + first * s.itemsize)
            for (_, first, count), s in zip(places, specs, strict=True)
        ]
    for kind, equal in itertools.groupby(range(len(places)), key=lambda i: specs[i].type):
        stored = np.frombuffer(b"".join(read[i] for i in equal), STORAGE[kind])
        if kind == "BF16":
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        values.append(stored.astype(np.float64))
    return np.concatenate(values)
