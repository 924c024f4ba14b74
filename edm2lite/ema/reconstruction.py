"""Rebuilds averages of any length from the snapshots of a run, in one pass over the files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edm2lite.ema.profile import Profile
from edm2lite.ema.snapshot import SnapshotInfo
from edm2lite.ema.stream import Progress, weighted_sums
from edm2lite.ema.targets import Reconstruction, plan_targets
from edm2lite.ema.workers import WorkerPool
from edm2lite.tensorfile import Header, TensorSpec, TensorWriter, as_bytes, read_header


def reconstruct(
    source: str | Path | Sequence[SnapshotInfo],
    *,
    sigma_rel: float | Sequence[float] | None = None,
    gamma: float | Sequence[float] | None = None,
    profiles: Sequence[Profile] | None = None,
    nimg: int | None = None,
    out: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    solver: str = "calibrated",
    progress: Progress | None = None,
) -> Iterator[Reconstruction]:
    """Rebuild averages of any length from snapshots.

    Give the averages by one of ``sigma_rel``, ``gamma`` and ``profiles``.

    Args:
        source: A run, a folder of snapshots, or a list of snapshots.
        sigma_rel: Relative widths, each in (0, 0.2887).
        gamma: Exponents >= 0.
        profiles: Averages of any shape. Each determines its own end, so ``nimg`` is not given.
        nimg: End of the averages in images; a snapshot must end there. [default: the latest]
        out: Folder for the files, named ``ema-<sigma_rel>-<nimg>.safetensors``. Without it the
            results are in memory.
        dtype: Floating-point type of the results; its rounding is in their predicted errors.
        solver: ``calibrated``, or ``paper`` (Algorithm 3).
        progress: Called with the bytes read and the total after each block.

    Yields:
        One result per average, in the order in which they are given, with its ``state_dict``, or
        with its ``path`` if ``out`` is given.

    Raises:
        FileNotFoundError: If there are no snapshots.
        ValueError: If an average is out of range, a snapshot is damaged, or ``out`` is the folder
            of the snapshots. No output file is written then.

    Example:
        >>> import tempfile
        >>> from edm2lite.ema import PowerFunctionEMA
        >>> weights, run = {"w": torch.ones(3)}, tempfile.mkdtemp()
        >>> ema = PowerFunctionEMA(weights)  # tracks sigma_rel 0.05 and 0.10
        >>> for step in range(1, 9):
        ...     weights["w"] += 1
        ...     ema.update(64 * step)
        ...     _ = ema.save_snapshots(f"{run}/snapshots")
        >>> for result in reconstruct(run, sigma_rel=[0.07, 0.12]):
        ...     print(result.sigma_rel, result.state_dict["w"][0] < 9, result.predicted_error < 0.1)
        0.07 tensor(True) True
        0.12 tensor(True) True
    """
    plans = plan_targets(
        source, sigma_rel=sigma_rel, gamma=gamma, profiles=profiles, nimg=nimg, solver=solver
    )
    plans = [plan.stored_as(dtype) for plan in plans]
    yield from build(plans, out=out, dtype=dtype, progress=progress)


def build(
    plans: Sequence[Reconstruction],
    *,
    out: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> Iterator[Reconstruction]:
    """Carry out plans from one call of :func:`edm2lite.ema.plan_targets`, in one pass.

    Args:
        plans: All plans of the call, or some of them.
        out: Folder for the files. Without it the results are in memory.
        dtype: Floating-point type of the results.
        progress: Called with the bytes read and the total after each block.

    Yields:
        Each plan, completed by its ``state_dict`` or ``path``.

    Raises:
        ValueError: If a snapshot is damaged, or ``out`` is the folder of the snapshots. No output
            file is written then.

    Example:
        >>> import tempfile
        >>> from edm2lite.ema import PowerFunctionEMA
        >>> ema, run = PowerFunctionEMA({"w": torch.ones(3)}), tempfile.mkdtemp()
        >>> ema.update(nimg=64)
        >>> _ = ema.save_snapshots(run)
        >>> (result,) = build(plan_targets(run, sigma_rel=0.10))
        >>> result.state_dict
        {'w': tensor([1., 1., 1.])}
    """
    headers = [info.header for info in plans[0].inputs]
    specs = {
        name: TensorSpec(dtype if s.dtype.is_floating_point else s.dtype, s.shape)
        for name, s in headers[-1].tensors.items()
    }
    weights = np.stack([plan.coefficients for plan in plans])
    if out is None:
        for plan, state in zip(plans, _in_memory(headers, weights, specs, progress), strict=True):
            yield dataclasses.replace(plan, state_dict=state)
        return
    paths = output_paths(Path(out), plans)
    with ExitStack() as stack:
        pool = stack.enter_context(WorkerPool())
        writers = [
            stack.enter_context(TensorWriter(path, specs, plan.metadata))
            for path, plan in zip(paths, plans, strict=True)
        ]
        tasks: dict[tuple[int, torch.Size], list[tuple[TensorWriter, memoryview]]] = {}
        for _, values in weighted_sums(headers, weights, pool, dtype=dtype, progress=progress):
            memory = values.data_ptr(), values.shape
            if memory not in tasks:
                if len(tasks) > 2:
                    tasks.clear()
                tasks[memory] = [(w, as_bytes(v)) for w, v in zip(writers, values, strict=True)]
            pool.add(_append, tasks[memory])
        pool.run()
    for plan, path in zip(plans, paths, strict=True):
        yield dataclasses.replace(plan, path=path)


def _in_memory(
    headers: Sequence[Header],
    weights: NDArray[np.float64],
    specs: Mapping[str, TensorSpec],
    progress: Progress | None,
) -> list[dict[str, Tensor]]:
    """The rebuilt tensors for each row of ``weights``."""
    states = [
        {name: torch.empty(spec.numel, dtype=spec.dtype) for name, spec in specs.items()}
        for _ in weights
    ]
    with WorkerPool() as pool:
        for parts, values in weighted_sums(headers, weights, pool, progress=progress):
            for part in parts:
                count = part.last - part.first
                for state, row in zip(states, values[:, part.first : part.last], strict=True):
                    state[part.name][part.begin : part.begin + count] = row
    return [
        {name: state[name].view(spec.shape) for name, spec in specs.items()} for state in states
    ]


def _append(worker: int, task: tuple[TensorWriter, memoryview]) -> None:
    writer, data = task
    writer.append(data)


def output_paths(out: Path, plans: Sequence[Reconstruction]) -> list[Path]:
    """The files in ``out`` that the results of some plans are written to.

    Args:
        out: Folder for the results.
        plans: Plans from one call of :func:`edm2lite.ema.plan_targets`.

    Raises:
        ValueError: If ``out`` is the folder of the snapshots, or two plans have the same file name.
    """
    if any(info.path.resolve().parent == out.resolve() for info in plans[0].inputs):
        raise ValueError(
            f"{out} holds the snapshots themselves; give another folder for the results"
        )
    paths = []
    for r, plan in enumerate(plans):
        label = f"profile{r}" if plan.sigma_rel is None else f"{plan.sigma_rel:.5f}"
        paths.append(out / f"ema-{label}-{plan.nimg:010d}.safetensors")
    if len(set(paths)) < len(paths):
        raise ValueError(
            "lengths must differ in the first 5 decimals of sigma_rel, got"
            f" {[plan.sigma_rel for plan in plans]}"
        )
    return paths


def is_current(path: Path, plan: Reconstruction, dtype: torch.dtype) -> bool:
    """Whether a file already holds a reconstruction: the same inputs, coefficients and dtype.

    Args:
        path: The file; it need not exist.
        plan: The reconstruction.
        dtype: Floating-point type of the result.
    """
    if not path.is_file():
        return False
    try:
        header = read_header(path)
    except ValueError:
        return False  # damaged: the file is written again
    same_type = all(s.dtype == dtype for s in header.tensors.values() if s.dtype.is_floating_point)
    return same_type and plan.metadata.items() <= header.metadata.items()
