"""Rebuilds averages of any length from the snapshots of a run, all in one pass over the files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edm2lite.ema.profile import Profile
from edm2lite.ema.snapshot import SnapshotInfo
from edm2lite.ema.stream import Progress, weighted_sums
from edm2lite.ema.targets import Reconstruction, plan_targets
from edm2lite.ema.workers import Crew
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
    """Rebuild averages; yields one result per target in the order asked.

    Args:
        source: A run, a folder of snapshots, or their list.
        sigma_rel: Relative widths, each in (0, 0.2887).
        gamma: Exponents >= 0, in place of ``sigma_rel``.
        profiles: Averages of any shape, in place of both; they say themselves where they end.
        nimg: End of the averages in images; some snapshot must end there. [default: the latest]
        out: Folder for the files, named ``ema-<sigma_rel>-<nimg>.safetensors``; without it the
            results carry their ``state_dict``.
        dtype: Floating-point type of the results; its rounding is in their predicted errors.
        solver: ``calibrated``, or ``paper`` (Algorithm 3).
        progress: Called with (bytes read, bytes in all) after each block.

    Raises:
        FileNotFoundError, ValueError: As :func:`plan_targets`; a snapshot is damaged, or ``out`` is
            the folder that holds the snapshots. No output file is written then.
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
    """Carry out plans made by one call of :func:`plan_targets`, in one pass over their inputs.

    Args:
        plans: All or some of them.
        out, dtype, progress: As :func:`reconstruct`.

    Raises:
        ValueError: As :func:`reconstruct`.
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
        crew = stack.enter_context(Crew())
        writers = [
            stack.enter_context(TensorWriter(path, specs, plan.metadata))
            for path, plan in zip(paths, plans, strict=True)
        ]
        tasks: dict[tuple[int, torch.Size], list[tuple[TensorWriter, memoryview]]] = {}
        for _, values in weighted_sums(headers, weights, crew, dtype=dtype, progress=progress):
            memory = values.data_ptr(), values.shape
            if memory not in tasks:
                if len(tasks) > 2:
                    tasks.clear()
                tasks[memory] = [(w, as_bytes(v)) for w, v in zip(writers, values, strict=True)]
            crew.add(_append, tasks[memory])
        crew.run()
    for plan, path in zip(plans, paths, strict=True):
        yield dataclasses.replace(plan, path=path)


def _in_memory(
    headers: Sequence[Header],
    weights: np.ndarray,
    specs: Mapping[str, TensorSpec],
    progress: Progress | None,
) -> list[dict[str, Tensor]]:
    """The tensors of each row of ``weights``."""
    states = [
        {name: torch.empty(spec.numel, dtype=spec.dtype) for name, spec in specs.items()}
        for _ in weights
    ]
    with Crew() as crew:
        for parts, values in weighted_sums(headers, weights, crew, progress=progress):
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
    """File of each target in ``out``.

    Raises:
        ValueError: ``out`` is where the snapshots are, or two targets share a name.
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
    """Whether ``path`` already holds this reconstruction: same inputs, coefficients and dtype."""
    if not path.is_file():
        return False
    try:
        header = read_header(path)
    except ValueError:
        return False  # damaged: it is written anew
    same_type = all(s.dtype == dtype for s in header.tensors.values() if s.dtype.is_floating_point)
    return same_type and plan.metadata.items() <= header.metadata.items()
