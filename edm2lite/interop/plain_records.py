"""Builds numbers, text, mappings and NumPy arrays from records of a pickle."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from edm2lite.interop.inert_pickle import Record, shown

MAPPINGS = ("dnnlib.util.EasyDict", "collections.OrderedDict")
_SCALAR = "numpy._core.multiarray.scalar"
_ARRAY = "numpy._core.multiarray._reconstruct"
_BUFFER = "numpy._core.numeric._frombuffer"
_BYTES = "_codecs.encode"  # how protocol 2 writes bytes
VALUE_NAMES = frozenset(
    {*MAPPINGS, _SCALAR, _ARRAY, _BUFFER, _BYTES, "numpy.dtype", "numpy.ndarray"}
)
"""All functions and classes that pickled mappings and values of NumPy name."""

MAX_DIMENSIONS = 8
_MAX_VALUES = 4096  # largest number of values in a plain array or list


def as_mapping(value: object, what: str) -> Mapping[str | int, object]:
    """The entries of a pickled dict of any kind.

    Args:
        value: Value from :func:`edm2lite.interop.inert_pickle.read_pickle`.
        what: Name of the value in error messages.

    Raises:
        ValueError: If the value is not a mapping.
    """
    if isinstance(value, dict):
        return value
    if isinstance(value, Record) and value.name in MAPPINGS:
        return value.items
    raise ValueError(f"must hold a mapping as {what}, holds {kind_of(value)}")


def plain(value: object, what: str) -> object:
    """A pickled number or string, or a flat list of them; NumPy values are converted.

    Args:
        value: Value from :func:`edm2lite.interop.inert_pickle.read_pickle`.
        what: Name of the value in error messages.

    Raises:
        ValueError: If the value is something else.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple) and _is_flat(value):
        return [plain(v, what) for v in value]
    if isinstance(value, Record) and value.name == _SCALAR and len(value.args) == 2:
        return _array(value.args[1], value.args[0], what, _MAX_VALUES).tolist()[0]
    if (parts := _array_parts(value)) is not None:
        content, dtype, _, _ = parts
        return _array(content, dtype, what, _MAX_VALUES).tolist()
    raise ValueError(f"must hold numbers or text as {what}, holds {kind_of(value)}")


def array(value: object, what: str) -> np.ndarray:
    """A pickled NumPy array of numbers, in its shape; read-only where it is a view of the file.

    Args:
        value: Value from :func:`edm2lite.interop.inert_pickle.read_pickle`.
        what: Name of the value in error messages.

    Raises:
        ValueError: If the value is something else, or its bytes are not as many as its shape needs.

    Example:
        >>> import pickle
        >>> from edm2lite.interop.inert_pickle import read_pickle
        >>> data = memoryview(pickle.dumps(np.eye(2)))
        >>> array(read_pickle(data, VALUE_NAMES)[0], "identity").tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if (parts := _array_parts(value)) is None:
        raise ValueError(f"must hold an array of NumPy as {what}, holds {kind_of(value)}")
    content, dtype, shape, order = parts
    flat = _array(content, dtype, what)
    sizes = as_sizes(shape)
    if sizes is None or math.prod(sizes) != len(flat):
        raise ValueError(f"is damaged: {what} has {len(flat)} values and another shape")
    return flat.reshape(sizes, order="F" if order in (True, "F") else "C")


def as_bytes(value: object, what: str) -> memoryview:
    """The bytes of a pickled value.

    Args:
        value: Value from :func:`edm2lite.interop.inert_pickle.read_pickle`.
        what: Name of the value in error messages.

    Raises:
        ValueError: If the value is something else.
    """
    if isinstance(value, memoryview):
        return value
    if isinstance(value, Record) and value.name == _BYTES and len(value.args) == 2:
        text, coding = value.args
        if isinstance(text, str) and coding == "latin1":
            with contextlib.suppress(UnicodeEncodeError):
                return memoryview(bytearray(text, "latin1"))
    raise ValueError(f"must hold bytes for {what}, holds {kind_of(value)}")


def as_sizes(value: object) -> tuple[int, ...] | None:
    """A pickled shape, or strides; None if the value is neither."""
    if isinstance(value, Record) and value.name == "torch.Size" and len(value.args) == 1:
        value = value.args[0]
    if not isinstance(value, tuple | list) or len(value) > MAX_DIMENSIONS:
        return None
    return tuple(value) if all(type(n) is int and 0 <= n < 2**40 for n in value) else None


def kind_of(value: object) -> str:
    """What a value is, in error messages."""
    return f"a call of {value.name}" if isinstance(value, Record) else shown(value)


def _array_parts(value: object) -> tuple[object, object, object, object] | None:
    """Content, dtype, shape and order of a pickled array; None if it is none."""
    if isinstance(value, Record) and value.name == _BUFFER and len(value.args) == 4:
        content, dtype, shape, order = value.args
        return content, dtype, shape, order
    state = value.state if isinstance(value, Record) and value.name == _ARRAY else None
    if isinstance(state, tuple) and len(state) == 5:
        _, shape, dtype, order, content = state
        return content, dtype, shape, order
    return None


def _is_flat(values: Sequence[object]) -> bool:
    return len(values) <= _MAX_VALUES and not any(isinstance(v, list | tuple) for v in values)


def _array(content: object, dtype: object, what: str, limit: int | None = None) -> np.ndarray:
    """The flat values of a pickled NumPy array or scalar, at most so many 8-byte values."""
    data = as_bytes(content, what)
    kind = dtype.args[0] if isinstance(dtype, Record) and dtype.args else None
    order = dtype.state[1] if isinstance(dtype, Record) and isinstance(dtype.state, tuple) else ""
    code = f"{order}{kind}".replace("|", "")
    if not re.fullmatch("[<>=]?(b1|[iu][1248]|f[248])", code) or (limit and len(data) > 8 * limit):
        raise ValueError(f"must hold a few numbers as {what}, holds {shown(code)}")
    numbers = np.dtype(code)
    if not len(data) or len(data) % numbers.itemsize:
        raise ValueError(f"is damaged: {what} has {len(data)} bytes")
    return np.frombuffer(data, numbers)
