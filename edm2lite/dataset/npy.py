"""Arrays in NPY files, read without trusting what their headers promise."""

from __future__ import annotations

import ast
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"\x93NUMPY"
_LARGEST_HEADER = 10_000
_KINDS = "biuf"


def parse_npy(data: bytes | memoryview) -> NDArray[Any]:
    """The array in an NPY file; nothing is allocated that the file does not hold.

    Args:
        data: Content of the file.

    Returns:
        An array of numbers or truth values, in memory of its own.

    Raises:
        ValueError: If the file is damaged, or holds anything but numbers. The message continues a
            sentence that begins with the name of the file.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> np.save(file, np.arange(3))
        >>> parse_npy(file.getvalue())
        array([0, 1, 2])
    """
    view = memoryview(data)
    if bytes(view[:6]) != _MAGIC or len(view) < 12:
        raise ValueError("is not an NPY file")
    size = 2 if view[6] == 1 else 4  # bytes of the length of the header
    begin = 8 + size
    end = begin + int.from_bytes(view[8:begin], "little")
    if not begin < end <= min(len(view), begin + _LARGEST_HEADER):
        raise ValueError("is cut short inside its header")
    dtype, shape, order = _header(bytes(view[begin:end]))
    if math.prod(shape) * dtype.itemsize != len(view) - end:
        raise ValueError(
            f"holds {len(view) - end} bytes of numbers where {list(shape)} need others"
        )
    array: np.ndarray[Any, np.dtype[Any]] = np.frombuffer(view[end:], dtype)
    return np.array(array.reshape(shape, order=order), order="C")


def _header(raw: bytes) -> tuple[np.dtype[Any], tuple[int, ...], Any]:
    try:
        values = ast.literal_eval(raw.decode("latin1").strip())
        description, shape = values["descr"], values["shape"]
        order = "F" if values["fortran_order"] is True else "C"
        if not isinstance(description, str) or description[1:2] not in _KINDS:
            raise ValueError("of an array of numbers")
        dtype = np.dtype(description)
    except (ValueError, TypeError, KeyError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError("has an unreadable header, or holds anything but numbers") from error
    counts = isinstance(shape, tuple) and all(type(n) is int and 0 <= n < 2**40 for n in shape)
    if not counts or len(shape) > 32 or dtype.kind not in _KINDS:
        raise ValueError("has an impossible shape, or holds anything but numbers")
    return dtype, shape, order
