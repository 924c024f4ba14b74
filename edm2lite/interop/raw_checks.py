"""Whether checkpoints can be averaged: of one architecture, not quantized, all numbers finite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from edm2lite.ema.snapshot import SnapshotInfo
from edm2lite.interop.checkpoint_files import Checkpoint, quantization_of
from edm2lite.tensorfile import all_finite
from edm2lite.tensorheader import TYPES, TensorSpec

_QUANTIZED = (".qweight", ".qzeros", ".scales", ".SCB", ".absmax", ".quant_map")
_SMALL = 1024  # integer tensors up to this size are masks, counters and tables


def check_alike(
    checkpoints: Sequence[Checkpoint], present: Sequence[SnapshotInfo], clock: str
) -> None:
    """Refuse checkpoints that cannot be averaged with each other, or with snapshots that are there.

    Args:
        checkpoints: Checkpoints by time, at least one.
        present: Snapshots of the run that they are to join.
        clock: Unit of their times.

    Raises:
        ValueError: If one is quantized or of another architecture, or the clock is another one.
    """
    specs, where = dict(checkpoints[-1].specs), checkpoints[-1].path.name
    if present:
        specs, where = present[0].header.tensors, present[0].path.name
        if present[0].clock != clock:
            raise ValueError(
                f"times must be counted as in the run, in {present[0].clock}, got {clock}; give"
                f" --clock {present[0].clock}"
            )
    for checkpoint in checkpoints:
        _check_storable(checkpoint)
        name = checkpoint.path.name
        if checkpoint.specs.keys() != specs.keys():
            odd = min(checkpoint.specs.keys() ^ specs.keys())
            has, lacks = (name, where) if odd in checkpoint.specs else (where, name)
            raise ValueError(
                f"checkpoints must be of one architecture, {odd} is in {has} and not in {lacks};"
                " move the odd one elsewhere"
            )
        for tensor, spec in specs.items():
            if (shape := checkpoint.specs[tensor].shape) != spec.shape:
                raise ValueError(
                    f"checkpoints must be of one architecture, {tensor} is {shape} in {name} and"
                    f" {spec.shape} in {where}; move the odd one elsewhere"
                )


def check_finite(values: Tensor, name: str, path: Path) -> None:
    """Refuse values of which one is NaN or infinite.

    Args:
        values: A part of a tensor.
        name: Name of the tensor.
        path: Checkpoint that it is from.

    Raises:
        ValueError: If a value is not finite.
    """
    if values.is_floating_point() and not all_finite(values):
        raise ValueError(
            f"weights must be finite to be averaged, {name} in {path} is not; move the checkpoint"
            " elsewhere"
        )


def _check_storable(checkpoint: Checkpoint) -> None:
    method = quantization_of(checkpoint.path)
    odd = next((n for n, spec in checkpoint.specs.items() if _is_quantized(n, spec)), None)
    if method is not None or odd is not None:
        why = f"its config.json says {method}"
        if odd is not None:
            kind = checkpoint.specs[odd].type
            why = f"{odd} is {TYPES.get(kind, (kind,))[0]}"
        raise ValueError(
            f"weights must be floating-point numbers to be averaged, {checkpoint.path} is quantized"
            f" ({why}); use the checkpoint that it was made from"
        )
    if not any(spec.is_floating_point for spec in checkpoint.specs.values()):
        raise ValueError(f"{checkpoint.path} must hold floating-point tensors, and holds none")


def _is_quantized(name: str, spec: TensorSpec) -> bool:
    if spec.type not in TYPES:
        return True
    is_packed = spec.type in ("I8", "U8", "I32") and name.endswith(_QUANTIZED)
    return is_packed or (spec.type in ("I8", "U8") and spec.numel > _SMALL)
