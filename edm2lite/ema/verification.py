"""Checks that a rebuilt average is what its file says: made from these snapshots in this way."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edm2lite.ema.snapshot import snapshot_folder
from edm2lite.ema.stream import Progress, weighted_sums
from edm2lite.ema.workers import Crew
from edm2lite.tensorfile import MODEL_FORMAT, Header, read_header, verify


def verify_reconstruction(
    path: str | Path, source: str | Path, progress: Progress | None = None
) -> int:
    """Rebuild a file from the snapshots and coefficients that it names; returns their number.

    The result must be the same to float32 rounding: the order of additions depends on the machine
    and on how many averages were rebuilt together.

    Args:
        path: A file that :func:`edm2lite.ema.reconstruct` wrote.
        source: The run or folder that holds the snapshots.
        progress: Called with (bytes read, bytes in all) after each block.

    Raises:
        FileNotFoundError, ValueError: Something is missing, damaged or different.
    """
    header = verify(Path(path))
    inputs = _recorded_inputs(header)
    headers = _find(inputs, snapshot_folder(Path(source)))
    shapes = {name: spec.shape for name, spec in header.tensors.items()}
    if any({n: s.shape for n, s in h.tensors.items()} != shapes for h in headers):
        raise ValueError(f"{path} must hold the tensors of its snapshots and holds others")
    weights = np.array([[entry["coefficient"] for entry in inputs]], np.float64)
    grown = float(np.abs(weights).sum())
    different, largest = 0, 0.0
    with open(header.path, "rb") as file, Crew() as crew:
        file.seek(header.data_start)
        for parts, values in weighted_sums(headers, weights, crew, progress=progress):
            for part in parts:
                dtype = header.tensors[part.name].dtype
                rebuilt = values[0, part.first : part.last].to(dtype)
                data = bytearray(file.read(rebuilt.numel() * dtype.itemsize))
                found = torch.frombuffer(data, dtype=dtype)
                gap = (rebuilt.double() - found.double()).abs()
                different += int((gap > _rounding(found, grown)).sum())
                largest = max(largest, float(gap.max()))
    if different:
        raise ValueError(
            f"{path} must equal what its snapshots and coefficients give, and differs in"
            f" {different} values, by up to {largest:.1e}; rebuild it"
        )
    return len(inputs)


def _recorded_inputs(header: Header) -> list[dict[str, Any]]:
    """Entries file, digest, coefficient of the metadata."""
    if header.metadata.get("format") != MODEL_FORMAT or "inputs" not in header.metadata:
        raise ValueError(f"{header.path} must be a file that reconstruct_ema wrote and is another")
    inputs = json.loads(header.metadata["inputs"])
    if not inputs:
        raise ValueError(f"{header.path} must name its snapshots and names none")
    return inputs


def _find(inputs: list[dict[str, Any]], folder: Path) -> list[Header]:
    """Headers of the snapshots, by digest; names are for people and may have changed."""
    present = {}
    for path in sorted(folder.glob("*.safetensors")):
        with contextlib.suppress(ValueError):  # damaged: named below if it is needed
            header = read_header(path)
            present[header.digest] = header
    gone = [str(entry["file"]) for entry in inputs if entry["digest"] not in present]
    if gone:
        raise ValueError(
            f"all {len(inputs)} snapshots that the file was made from must be in {folder},"
            f" {len(gone)} are missing or damaged: {', '.join(gone[:5])}; restore them"
        )
    return [present[entry["digest"]] for entry in inputs]


def _rounding(values: Tensor, grown: float) -> Tensor | float:
    """What two sums of the same terms may differ by; ``grown`` is the sum of |coefficients|."""
    if not values.is_floating_point():
        return 0.0
    size = values.double().abs()
    return torch.finfo(values.dtype).eps * size + 2**-21 * grown * size.max()
