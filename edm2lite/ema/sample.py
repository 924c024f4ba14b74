"""A small part of the values of some snapshots, and how the weights moved according to it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from edm2lite.ema.fitting import fit_trajectory
from edm2lite.ema.rounding import ROUNDING
from edm2lite.ema.snapshot import SnapshotInfo
from edm2lite.ema.trajectory import TrajectoryModel

_RUNS, _RUN_LENGTH = 96, 128  # places in the file, and values read at each


def fit_model(infos: Sequence[SnapshotInfo]) -> TrajectoryModel:
    """How the weights moved, learnt from a random sample of the files' floating-point values.

    Raises:
        ValueError: A sampled value is not finite: that file is damaged.
    """
    return fit_sample(infos, read_sample(infos))


def fit_sample(infos: Sequence[SnapshotInfo], sample: NDArray[np.float64]) -> TrajectoryModel:
    """As :func:`fit_model`, of values [K, n] from :func:`read_sample`."""
    updates = sum(count for _, count in infos[-1].history)
    rounding = [ROUNDING[info.dtype] for info in infos]
    return fit_trajectory([info.profile for info in infos], sample, rounding, updates)


def read_sample(infos: Sequence[SnapshotInfo]) -> NDArray[np.float64]:
    """[K, n] values of the same random elements of every file, always the same ones for a model.

    Of a small model these are all of its elements, once: one that is drawn again tells nothing new,
    and the fit would take what is missing for a direction in which nothing moves.

    Raises:
        ValueError: A value is not finite: that file is damaged.
    """
    rng = np.random.default_rng(0)
    tensors = [(n, s) for n, s in infos[-1].header.tensors.items() if s.dtype.is_floating_point]
    sizes = np.array([spec.numel for _, spec in tensors], dtype=np.float64)
    small = sizes.sum() <= _RUNS * _RUN_LENGTH
    places = [(name, 0, spec.numel) for name, spec in tensors if small]
    for i in rng.choice(len(tensors), 0 if small else _RUNS, p=sizes / sizes.sum()):
        name, spec = tensors[i]
        count = min(_RUN_LENGTH, spec.numel)
        places.append((name, int(rng.integers(spec.numel - count + 1)), count))
    sample = np.stack([_values_at(info, places) for info in infos])
    bad = [info.path for info, row in zip(infos, sample, strict=True) if not np.isfinite(row).all()]
    if bad:
        raise ValueError(
            f"{bad[0]} must hold finite values and does not; move it out of the folder"
        )
    return sample


def _values_at(info: SnapshotInfo, places: Sequence[tuple[str, int, int]]) -> NDArray[np.float64]:
    """float64 values of consecutive elements (tensor, first, count) of one file."""
    specs = [info.header.tensors[name] for name, _, _ in places]
    values = []
    with open(info.path, "rb", buffering=0) as file:
        read = [
            os.pread(file.fileno(), count * s.dtype.itemsize, s.offset + first * s.dtype.itemsize)
            for (_, first, count), s in zip(places, specs, strict=True)
        ]
    for dtype, same in itertools.groupby(range(len(places)), key=lambda i: specs[i].dtype):
        data = bytearray(b"".join(read[i] for i in same))
        values.append(torch.frombuffer(data, dtype=dtype).double().numpy())
    return np.concatenate(values)
