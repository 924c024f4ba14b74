"""Carries out plans for averages: sums the snapshots in one pass, into memory or into files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edm2lite.atomic import remove_abandoned
from edm2lite.claim import claim_folder
from edm2lite.ema.casts import load_torch_if_faster
from edm2lite.ema.result import Reconstruction
from edm2lite.ema.stream import Progress, weighted_sums
from edm2lite.ema.workers import WorkerPool, num_cores
from edm2lite.tensorfile import Header, TensorSpec, TensorWriter, read_header
from edm2lite.tensorheader import type_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def build(
    plans: Sequence[Reconstruction],
    *,
    out: str | Path | None = None,
    dtype: torch.dtype | str = "float32",
    progress: Progress | None = None,
) -> list[Reconstruction]:
    """Carry out plans from one call of :func:`edm2lite.ema.plan_targets`, in one pass.

    Args:
        plans: All plans of the call, or some of them.
        out: Folder for the files. Without it the results are in memory.
        dtype: Floating-point type of the results.
        progress: Called with the bytes read and the total after each block.

    Returns:
        Each plan, completed by its ``state_dict`` or ``path``.

    Raises:
        ValueError: If a snapshot is damaged, ``out`` is the folder of the snapshots, or another
            process writes to it. No output file is written then.

    Example:
        >>> import tempfile, torch
        >>> from edm2lite.ema import PowerFunctionEMA, plan_targets
        >>> ema, run = PowerFunctionEMA({"w": torch.ones(3)}), tempfile.mkdtemp()
        >>> ema.update(nimg=64)
        >>> _ = ema.save_snapshots(run)
        >>> (result,) = build(plan_targets(run, sigma_rel=0.10))
        >>> result.state_dict
        {'w': tensor([1., 1., 1.])}
    """
    headers = [info.header for info in plans[0].inputs]
    kind = type_of(dtype)
    specs = {
        name: TensorSpec(kind if spec.is_floating_point else spec.type, spec.shape)
        for name, spec in headers[-1].tensors.items()
    }
    weights = np.stack([plan.coefficients for plan in plans])
    if out is None:
        states = _in_memory(headers, weights, specs, kind, progress)
        return [
            dataclasses.replace(plan, state_dict=state)
            for plan, state in zip(plans, states, strict=True)
        ]
    paths = output_paths(Path(out), plans)
    size = sum(spec.numel for spec in specs.values())
    load_torch_if_faster(len(headers) * size, len(plans) * size, num_cores())
    with claim_folder(Path(out)) as mine, ExitStack() as stack:
        remove_abandoned(Path(out))  # of a process that was killed, with other lengths, say
        pool = stack.enter_context(WorkerPool())
        writers = [
            stack.enter_context(TensorWriter(path, specs, plan.metadata))
            for path, plan in zip(paths, plans, strict=True)
        ]
        tasks: dict[tuple[int, tuple[int, ...]], list[tuple[TensorWriter, memoryview]]] = {}
        for _, values in weighted_sums(headers, weights, pool, type=kind, progress=progress):
            memory = values.ctypes.data, values.shape
            if memory not in tasks:
                if len(tasks) > 2:
                    tasks.clear()
                data = [row.view(np.uint8).data for row in values]
                tasks[memory] = list(zip(writers, data, strict=True))
            pool.add(_append, tasks[memory])
        pool.run()
        mine.check()
    return [dataclasses.replace(plan, path=path) for plan, path in zip(plans, paths, strict=True)]


def _in_memory(
    headers: Sequence[Header],
    weights: NDArray[np.float64],
    specs: Mapping[str, TensorSpec],
    kind: str,
    progress: Progress | None,
) -> list[dict[str, Tensor]]:
    """The rebuilt tensors for each row of ``weights``."""
    import torch

    states = [
        {name: torch.empty(spec.numel, dtype=spec.dtype) for name, spec in specs.items()}
        for _ in weights
    ]
    memory = [
        {name: values.view(torch.uint8).numpy() for name, values in state.items()}
        for state in states
    ]
    with WorkerPool() as pool:
        for parts, values in weighted_sums(headers, weights, pool, type=kind, progress=progress):
            for part in parts:
                size = specs[part.name].itemsize
                begin, end = part.begin * size, (part.begin + part.last - part.first) * size
                for arrays, row in zip(memory, values, strict=True):
                    arrays[part.name][begin:end] = row[part.first : part.last].view(np.uint8)
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
        if plan.decay:
            label = f"decay-{plan.decay.replace(':', '-')}"
        else:
            label = f"ema-profile{r}" if plan.sigma_rel is None else f"ema-{plan.sigma_rel:.5f}"
        paths.append(out / f"{label}-{plan.nimg:010d}.safetensors")
    if len(set(paths)) < len(paths):
        raise ValueError(
            "averages must differ in their names or in the first 5 decimals of sigma_rel, got"
            f" {[plan.decay or plan.sigma_rel for plan in plans]}"
        )
    return paths


def is_current(path: Path, plan: Reconstruction, dtype: torch.dtype | str) -> bool:
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
    kind = type_of(dtype)
    same_type = all(s.type == kind for s in header.tensors.values() if s.is_floating_point)
    return same_type and plan.metadata.items() <= header.metadata.items()
