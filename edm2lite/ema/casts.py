"""Conversions between float32 and the types in which files store numbers, with or without torch.

NumPy has no bfloat16, and converts float16 one number at a time. Where torch is loaded its
conversions are used. Where it is not, loading it would take longer than all the arithmetic of a
small reconstruction: the same bits are then made by integer operations on whole blocks.
"""

from __future__ import annotations

import importlib
import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

_local = threading.local()

STORAGE: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),  # the bits: NumPy has no such type
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""NumPy types that hold the numbers of each type of :data:`edm2lite.tensorheader.TYPES`."""


_WIDEN, _NARROW, _LOADING = 0.4e-9, 3.8e-9, 1.3
"""Seconds of a core per number converted here, and those of loading torch, on a machine of 2026."""


def load_torch_if_faster(num_read: int, num_written: int, num_cores: int) -> None:
    """Load torch before a work that would take longer without it.

    Args:
        num_read: Numbers to widen.
        num_written: Numbers to round.
        num_cores: Cores that share the work.

    Example:
        >>> load_torch_if_faster(10**6, 10**6, num_cores=2)  # it does not
    """
    if (_WIDEN * num_read + _NARROW * num_written) / num_cores > _LOADING:
        importlib.import_module("torch")


def widen(out: NDArray[np.float32], values: NDArray[np.generic], kind: str) -> None:
    """Convert stored numbers to float32.

    Args:
        out: Array for the results, of the shape of ``values``.
        values: Numbers as they are stored, of type ``STORAGE[kind]``.
        kind: Type of the stored numbers: F64, F32, F16 or BF16.

    Example:
        >>> out = np.empty(2, np.float32)
        >>> widen(out, np.array([1.5, -2], np.float16), "F16")
        >>> out
        array([ 1.5, -2. ], dtype=float32)
    """
    if kind in ("F64", "F32"):
        np.copyto(out, values, casting="same_kind")
    elif "torch" in sys.modules:
        _torch_copy(out, values, "F32", kind)
    elif kind == "BF16":
        bits = out.view(np.uint32)
        np.copyto(bits, values, casting="same_kind")
        np.left_shift(bits, 16, out=bits)
    else:
        _widen_half(out, values)


def narrow(out: NDArray[np.generic], values: NDArray[np.float32], kind: str) -> None:
    """Round float32 to the type in which numbers are stored, to nearest and ties to even.

    Args:
        out: Where the results go, of type ``STORAGE[kind]`` and the shape of ``values``.
        values: Numbers.
        kind: Type to store: F64, F32, F16 or BF16.

    Example:
        >>> out = np.empty(1, np.uint16)
        >>> narrow(out, np.array([1.0], np.float32), "BF16")
        >>> hex(out[0])  # the upper half of 0x3f800000
        '0x3f80'
    """
    if kind in ("F64", "F32"):
        np.copyto(out, values)
    elif "torch" in sys.modules:
        _torch_copy(out, values, kind, "F32")
    elif kind == "BF16":
        np.copyto(out, _narrow_brain(values), casting="unsafe")
    else:
        _narrow_half(out, values)


def _torch_copy(out: NDArray[np.generic], values: NDArray[np.generic], to: str, of: str) -> None:
    import torch

    target, source = torch.from_numpy(out), torch.from_numpy(values)
    target = target.view(torch.bfloat16) if to == "BF16" else target
    target.copy_(source.view(torch.bfloat16) if of == "BF16" else source)


def _widen_half(out: NDArray[np.float32], values: NDArray[np.generic]) -> None:
    """float16 to float32: the bits moved into place, and 2**112 for the difference of exponents.

    The exponent of a float16 means ``2**(e - 15)``, and in the place of a float32's it means
    ``2**(e - 127)``. Numbers too small for an exponent become right by the same product.
    """
    stored = values.view(np.int16)
    if stored.max(initial=0) >= 0x7C00 or stored.view(np.uint16).max(initial=0) >= 0xFC00:
        np.copyto(out, values, casting="same_kind")  # infinity or NaN
        return
    bits = out.view(np.int32)
    np.copyto(bits, stored)  # the sign fills the upper half
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, np.int32(-0x70002000), out=bits)  # 0x8fffe000: sign, exponent, fraction
    np.multiply(out, np.float32(2.0**112), out=out)


def _narrow_brain(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Bits of float32 rounded to the upper half; NaN stays one."""
    bits = values.view(np.uint32)
    odd: NDArray[np.uint32] = (bits >> 16) & np.uint32(1)
    odd += np.uint32(0x7FFF)
    odd += bits
    odd >>= 16
    odd[np.isnan(values)] = 0x7FC0
    return odd


def _narrow_half(out: NDArray[np.generic], values: NDArray[np.float32]) -> None:
    """float32 to float16, by the sum that shifts out the bits that are rounded away.

    Adding ``2**k`` times 1.5 of the exponent leaves as many bits of the fraction as float16 has.
    Numbers beyond its range, infinities and NaN are left to NumPy.
    """
    if not -65504 < values.min(initial=0) <= values.max(initial=0) < 65504:
        np.copyto(out, values, casting="same_kind")
        return
    size, shift = (memory.reshape(values.shape) for memory in _scratch(values.size))
    bits, unit = size.view(np.uint32), shift.view(np.uint32)
    np.abs(values, out=size)
    # Spacing of float16 at each number: 2**(e - 10), at least 2**-24.
    np.bitwise_and(bits, np.uint32(0x7F800000), out=unit)
    np.maximum(unit, np.uint32((127 - 14) << 23), out=unit)
    unit += np.uint32((23 - 10) << 23)  # a power of two of this size rounds to that spacing
    size += shift  # rounds to nearest, ties to even
    size -= shift
    size *= np.float32(2.0**-112)
    bits >>= np.uint32(13)
    np.right_shift(values.view(np.uint32), np.uint32(16), out=unit)
    unit &= np.uint32(0x8000)
    bits |= unit
    np.copyto(out.view(np.uint16), bits, casting="unsafe")


def _scratch(count: int) -> list[NDArray[np.float32]]:
    """Two arrays of ``count`` numbers, the same ones at every call of a thread.

    New memory of this size would come from the system, page by page, each time.
    """
    if getattr(_local, "memory", np.empty((2, 0))).shape[1] < count:
        _local.memory = np.empty((2, count), np.float32)
    return [memory[:count] for memory in _local.memory]
