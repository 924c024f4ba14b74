"""Builds tensors, NumPy values and module trees from :mod:`edm2lite.interop.inert_pickle` records.

A pickle of torch stores a module as its ``__dict__`` and a tensor as a view of a storage, which is
an archive of its own: five small pickles, then the numbers as raw bytes. The archive is read here
by the same reader; the unpickler of torch is not involved.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edm2lite.interop.inert_pickle import Name, Record, Reference, read_pickle, shown

PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
CONTAINER = "torch.nn.modules.container.ModuleDict"
MAPPINGS = ("dnnlib.util.EasyDict", "collections.OrderedDict")
_PARAMETER = "torch._utils._rebuild_parameter"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_ARCHIVE = "torch.storage._load_from_bytes"
_SCALAR = "numpy._core.multiarray.scalar"
_ARRAY = "numpy._core.multiarray._reconstruct"
_BUFFER = "numpy._core.numeric._frombuffer"
_BYTES = "_codecs.encode"  # how protocol 2 writes bytes

ARRAY_NAMES = frozenset({_SCALAR, _ARRAY, _BUFFER, _BYTES, "numpy.dtype", "numpy.ndarray"})
"""All functions and classes that pickled values of NumPy name."""
NAMES = ARRAY_NAMES | frozenset(
    {
        *(PERSISTENT, CONTAINER, *MAPPINGS, _PARAMETER, _TENSOR, _ARCHIVE),
        *("builtins.set", "torch.device", "torch.Size"),
        *("torch.nn.parameter.Parameter", "torch.float16", "torch.float32", "torch.bfloat16"),
    }
)
"""All functions and classes that the pickle of an EDM2 network names."""

_STORAGES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
}
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch's archives before they were ZIP files
_MAX_DEPTH = 8  # largest nesting of modules, and largest number of dimensions
_MAX_VALUES = 4096  # largest number of values in a NumPy array or list


@dataclass(frozen=True)
class Instance:
    """An object as its pickle describes it, without its code.

    Attributes:
        class_name: Name of the class, without its module.
        attributes: The ``__dict__`` of the object.
    """

    class_name: str
    attributes: Mapping[str | int, object]


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
    raise ValueError(f"must hold a mapping as {what}, holds {_kind(value)}")


def as_instance(value: object, what: str) -> Instance:
    """A pickled persistent object of EDM2, or a container of modules.

    Args:
        value: Value from :func:`edm2lite.interop.inert_pickle.read_pickle`.
        what: Name of the value in error messages.

    Raises:
        ValueError: If the value is neither of the two.
    """
    if isinstance(value, Record) and value.name == PERSISTENT and len(value.args) == 1:
        meta = as_mapping(value.args[0], f"description of {what}")
        if isinstance(name := meta.get("class_name"), str):
            return Instance(name, as_mapping(meta.get("state"), f"state of {what}"))
    if isinstance(value, Record) and value.name == CONTAINER:
        return Instance("ModuleDict", as_mapping(value.state, f"state of {what}"))
    raise ValueError(f"must hold an object of EDM2 as {what}, holds {_kind(value)}")


def modules(root: object, what: str) -> Iterator[tuple[str, Instance]]:
    """A pickled module and all modules within, outer ones first.

    Args:
        root: The outermost module.
        what: Name of the outermost module in error messages.

    Yields:
        The prefix of the names of the module's tensors, and the module.

    Raises:
        ValueError: If something else is among them, or a module occurs twice.
    """
    seen: set[int] = set()
    stack = [("", root)]
    while stack:
        prefix, value = stack.pop()
        if id(value) in seen or prefix.count(".") > _MAX_DEPTH:
            raise ValueError(f"must hold a tree of modules, {shown(prefix)} occurs twice in it")
        seen.add(id(value))
        module = as_instance(value, prefix.rstrip(".") or what)
        yield prefix, module
        children = as_mapping(module.attributes.get("_modules"), f"modules of {prefix or what}")
        named = [(f"{prefix}{shown(k)}.", v) for k, v in children.items() if v is not None]
        stack += reversed(named)


def tensor(value: object, name: str) -> Tensor:
    """A copy of a pickled tensor or parameter.

    Args:
        value: Value from :func:`edm2lite.interop.inert_pickle.read_pickle`.
        name: Name of the tensor in error messages.

    Raises:
        ValueError: If the value is not a tensor, or its archive is damaged or holds other objects.
    """
    if isinstance(value, Record) and value.name == _PARAMETER and value.args:
        value = value.args[0]
    if not isinstance(value, Record) or value.name != _TENSOR or len(value.args) < 4:
        raise ValueError(f"must hold a tensor as {name}, holds {_kind(value)}")
    flat = _storage(value.args[0], name)
    offset = value.args[1]
    shape, stride = _sizes(value.args[2]), _sizes(value.args[3])
    if type(offset) is int and offset >= 0 and shape is not None and stride is not None:
        last = sum((n - 1) * step for n, step in zip(shape, stride, strict=False))
        if len(shape) == len(stride) and 0 < math.prod(shape) <= len(flat) - offset > last:
            return flat.as_strided(shape, stride, offset).clone(
                memory_format=torch.contiguous_format
            )
    raise ValueError(f"is damaged: {name} does not fit in its storage of {len(flat)} values")


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
    raise ValueError(f"must hold numbers or text as {what}, holds {_kind(value)}")


def array(value: object, what: str) -> np.ndarray:
    """A pickled NumPy array of numbers, in its shape; read-only where it is a view of the file.

    Args:
        value: Value from :func:`edm2lite.interop.inert_pickle.read_pickle`.
        what: Name of the value in error messages.

    Raises:
        ValueError: If the value is something else, or its bytes are not as many as its shape needs.

    Example:
        >>> import pickle
        >>> data = memoryview(pickle.dumps(np.eye(2)))
        >>> array(read_pickle(data, ARRAY_NAMES)[0], "identity").tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if (parts := _array_parts(value)) is None:
        raise ValueError(f"must hold an array of NumPy as {what}, holds {_kind(value)}")
    content, dtype, shape, order = parts
    flat = _array(content, dtype, what)
    sizes = _sizes(shape)
    if sizes is None or math.prod(sizes) != len(flat):
        raise ValueError(f"is damaged: {what} has {len(flat)} values and another shape")
    return flat.reshape(sizes, order="F" if order in (True, "F") else "C")


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


def _storage(value: object, name: str) -> Tensor:
    """All values [numel] of a pickled storage, without a copy."""
    if not isinstance(value, Record) or value.name != _ARCHIVE or len(value.args) != 1:
        raise ValueError(f"must hold a storage of torch for {name}, holds {_kind(value)}")
    data = _bytes(value.args[0], name)
    header, at = [], 0
    for names in ((), (), (), _STORAGES, ()):
        part, at = read_pickle(data, names, at)
        header.append(part)
    magic, protocol, system, reference, keys = header
    little = as_mapping(system, f"header of {name}").get("little_endian")
    if (magic, protocol, little) != (_MAGIC, _PROTOCOL, True):
        raise ValueError(f"must hold {name} in torch's archive format of little-endian machines")
    described = reference.key if isinstance(reference, Reference) else None
    if not isinstance(described, tuple) or len(described) < 5 or described[0] != "storage":
        raise ValueError(f"must hold one storage for {name}, its archive holds something else")
    kind, key, numel = described[1], described[2], described[4]
    if not isinstance(kind, Name) or not isinstance(key, str) or keys != [key]:
        raise ValueError(f"is damaged: the archive of {name} has an invalid header")
    dtype = _STORAGES[kind.dotted]
    stored = int.from_bytes(data[at : at + 8], "little")
    raw = data[at + 8 :]
    if stored != numel or len(raw) != stored * dtype.itemsize or not raw:
        raise ValueError(f"is damaged: {name} promises {shown(numel)} values in {len(raw)} bytes")
    return torch.frombuffer(raw, dtype=dtype)


def _array(content: object, dtype: object, what: str, limit: int | None = None) -> np.ndarray:
    """The flat values of a pickled NumPy array or scalar, at most so many 8-byte values."""
    data = _bytes(content, what)
    kind = dtype.args[0] if isinstance(dtype, Record) and dtype.args else None
    order = dtype.state[1] if isinstance(dtype, Record) and isinstance(dtype.state, tuple) else ""
    code = f"{order}{kind}".replace("|", "")
    if not re.fullmatch("[<>=]?(b1|[iu][1248]|f[248])", code) or (limit and len(data) > 8 * limit):
        raise ValueError(f"must hold a few numbers as {what}, holds {shown(code)}")
    numbers = np.dtype(code)
    if not len(data) or len(data) % numbers.itemsize:
        raise ValueError(f"is damaged: {what} has {len(data)} bytes")
    return np.frombuffer(data, numbers)


def _bytes(value: object, what: str) -> memoryview:
    if isinstance(value, memoryview):
        return value
    if isinstance(value, Record) and value.name == _BYTES and len(value.args) == 2:
        text, coding = value.args
        if isinstance(text, str) and coding == "latin1":
            with contextlib.suppress(UnicodeEncodeError):
                return memoryview(bytearray(text, "latin1"))
    raise ValueError(f"must hold bytes for {what}, holds {_kind(value)}")


def _sizes(value: object) -> tuple[int, ...] | None:
    """A pickled shape, or strides; None if the value is neither."""
    if isinstance(value, Record) and value.name == "torch.Size" and len(value.args) == 1:
        value = value.args[0]
    if not isinstance(value, tuple | list) or len(value) > _MAX_DEPTH:
        return None
    return tuple(value) if all(type(n) is int and 0 <= n < 2**40 for n in value) else None


def _kind(value: object) -> str:
    return f"a call of {value.name}" if isinstance(value, Record) else shown(value)
