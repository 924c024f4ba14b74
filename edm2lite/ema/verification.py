"""Checks that a rebuilt average is what its file says: this combination of these snapshots."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edm2lite.ema.folder import snapshot_folder
from edm2lite.ema.snapshot import read_info
from edm2lite.ema.stream import Progress, weighted_sums
from edm2lite.ema.workers import WorkerPool
from edm2lite.strict_json import parse
from edm2lite.tensorfile import ADAPTER_FORMAT, MODEL_FORMAT, Header, verify

if TYPE_CHECKING:
    from torch import Tensor


def verify_reconstruction(
    path: str | Path, source: str | Path, progress: Progress | None = None
) -> int:
    """Rebuild a file from the snapshots and coefficients that it names, and compare.

    The values must agree up to float32 rounding: the order of additions depends on the machine and
    on how many averages were rebuilt together.

    Args:
        path: A file that :func:`edm2lite.ema.reconstruct` wrote.
        source: The run or folder that holds the snapshots.
        progress: Called with the bytes read and the total after each block.

    Returns:
        The number of snapshots that the file was made from.

    Raises:
        FileNotFoundError: If ``path`` does not exist.
        ValueError: If a file is damaged, a snapshot is missing, or the values differ.

    Example:
        >>> import tempfile, torch
        >>> from edm2lite.ema import PowerFunctionEMA, reconstruct
        >>> weights, run = {"w": torch.ones(50)}, Path(tempfile.mkdtemp())
        >>> ema = PowerFunctionEMA(weights)
        >>> for step in range(1, 5):
        ...     weights["w"] += 0.01 * torch.randn(50)
        ...     ema.update(64 * step)
        ...     _ = ema.save_snapshots(run / "snapshots")
        >>> result = reconstruct(run, sigma_rel=0.07, out=run / "ema")
        >>> verify_reconstruction(result.path, run)
        8
    """
    header = verify(Path(path))
    inputs = _recorded_inputs(header)
    headers = _find(inputs, snapshot_folder(Path(source)))
    shapes = {name: spec.shape for name, spec in header.tensors.items()}
    if any({n: s.shape for n, s in h.tensors.items()} != shapes for h in headers):
        raise ValueError(
            f"{path} must hold the same tensors as its snapshots, and holds others; rebuild it"
        )
    coefficients = np.array([[entry["coefficient"] for entry in inputs]], np.float64)
    different, largest = _compare(header, headers, coefficients, progress)
    if different:
        raise ValueError(
            f"{path} must equal what its snapshots and coefficients give, and differs in"
            f" {different} values, by up to {largest:.1e}; rebuild it"
        )
    return len(inputs)


def _compare(
    header: Header,
    headers: Sequence[Header],
    coefficients: NDArray[np.float64],
    progress: Progress | None,
) -> tuple[int, float]:
    """Number of values of a file that differ from a weighted sum, and the largest difference."""
    import torch

    sum_abs = float(np.abs(coefficients).sum())
    different, largest = 0, 0.0
    with open(header.path, "rb") as file, WorkerPool() as pool:
        file.seek(header.data_start)
        for parts, values in weighted_sums(headers, coefficients, pool, progress=progress):
            for part in parts:
                dtype = header.tensors[part.name].dtype
                rebuilt = torch.from_numpy(values[0, part.first : part.last].copy()).to(dtype)
                data = bytearray(file.read(rebuilt.numel() * dtype.itemsize))
                found = torch.frombuffer(data, dtype=dtype)
                gap = (rebuilt.double() - found.double()).abs()
                different += int((gap > _tolerance(found, sum_abs)).sum())
                largest = max(largest, float(gap.max()))
    return different, largest


def _recorded_inputs(header: Header) -> list[dict[str, Any]]:
    """File, digest and coefficient of each snapshot, from the metadata."""
    if (
        header.metadata.get("format") not in (MODEL_FORMAT, ADAPTER_FORMAT)
        or "inputs" not in header.metadata
    ):
        raise ValueError(f"{header.path} must be a file that reconstruct_ema wrote, and is not")
    inputs = parse(header.metadata["inputs"])
    if not isinstance(inputs, list) or not inputs or not all(map(_is_input, inputs)):
        raise ValueError(
            f"{header.path} must name the snapshots it was made from, and names none; rebuild it"
        )
    return inputs


def _is_input(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("digest"), str)
        and isinstance(entry.get("coefficient"), int | float)
        and "file" in entry
    )


def _find(inputs: list[dict[str, Any]], folder: Path) -> list[Header]:
    """Headers of the snapshots, found by digest: file names may have changed."""
    present = {}
    for path in sorted(folder.glob("*.safetensors")):
        with contextlib.suppress(ValueError):  # a damaged file, reported below if it is needed
            if (info := read_info(path)) is not None:
                present[info.header.digest] = info.header
    missing = [str(entry["file"]) for entry in inputs if entry["digest"] not in present]
    if missing:
        raise ValueError(
            f"all {len(inputs)} snapshots that the file was made from must be in {folder},"
            f" {len(missing)} are missing or damaged: {', '.join(missing[:5])}; restore them"
        )
    return [present[entry["digest"]] for entry in inputs]


def _tolerance(values: Tensor, sum_abs: float) -> Tensor | float:
    """Largest difference by rounding of two sums of the same terms.

    Args:
        values: One of the sums.
        sum_abs: Sum of the absolute coefficients.
    """
    if not values.is_floating_point():
        return 0.0
    import torch

    size = values.double().abs()
    return torch.finfo(values.dtype).eps * size + 2**-21 * sum_abs * size.max()
