"""Builds tensors and module trees from :mod:`edm2lite.interop.inert_pickle` records.

A pickle of torch stores a module as its ``__dict__`` and a tensor as a view of a storage, which is
an archive of its own: five small pickles, then the numbers as raw bytes. The archive is read here
by the same reader; the unpickler of torch is not involved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edm2lite.interop.inert_pickle import Name, Record, Reference, read_pickle, shown
from edm2lite.interop.plain_records import VALUE_NAMES, as_bytes, as_mapping, as_sizes, kind_of

PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
CONTAINER = "torch.nn.modules.container.ModuleDict"
_PARAMETER = "torch._utils._rebuild_parameter"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_ARCHIVE = "torch.storage._load_from_bytes"
NAMES = VALUE_NAMES | frozenset(
    {
        *(PERSISTENT, CONTAINER, _PARAMETER, _TENSOR, _ARCHIVE),
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
_MAX_DEPTH = 8  # largest nesting of modules


@dataclass(frozen=True)
class Instance:
    """An object as its pickle describes it, without its code.

    Attributes:
        class_name: Name of the class, without its module.
        attributes: The ``__dict__`` of the object.
    """

    class_name: str
    attributes: Mapping[str | int, object]


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
    raise ValueError(f"must hold an object of EDM2 as {what}, holds {kind_of(value)}")


def arguments(instance: Instance, names: Sequence[str], what: str) -> dict[str | int, object]:
    """The arguments that an object of EDM2 was built with, those given by position too.

    Args:
        instance: The object.
        names: Names of the arguments of its class, in their order.
        what: Name of the object in error messages.

    Raises:
        ValueError: If more are given by position than there are names, or one is given twice.

    Example:
        >>> built = Instance("Block", {"_init_args": (8,), "_init_kwargs": {"out_channels": 16}})
        >>> arguments(built, ("in_channels", "out_channels"), "block")
        {'in_channels': 8, 'out_channels': 16}
    """
    given = instance.attributes.get("_init_args", ())
    if not isinstance(given, tuple | list) or len(given) > len(names):
        raise ValueError(
            f"must give at most {len(names)} settings of {what} by position, holds"
            f" {len(given) if isinstance(given, tuple | list) else kind_of(given)}"
        )
    named = as_mapping(instance.attributes.get("_init_kwargs", {}), f"settings of {what}")
    positional: dict[str | int, object] = dict(zip(names, given, strict=False))
    twice = [name for name in positional if name in named]
    if twice:
        raise ValueError(f"contradicts itself: {twice[0]} of {what} is set twice")
    return positional | dict(named)


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
        raise ValueError(f"must hold a tensor as {name}, holds {kind_of(value)}")
    return strided(_storage(value.args[0], name), value.args, name)


def strided(flat: Tensor, args: Sequence[object], name: str) -> Tensor:
    """A copy of the tensor that a pickle describes as a view of a storage.

    Args:
        flat: All values of the storage.
        args: Arguments of torch's function: storage, offset, shape, strides, and further ones.
        name: Name of the tensor in error messages.

    Raises:
        ValueError: If the tensor does not lie within its storage, or is larger than it.
    """
    offset, shape, stride = args[1], as_sizes(args[2]), as_sizes(args[3])
    if type(offset) is int and offset >= 0 and shape is not None and stride is not None:
        last = sum((n - 1) * step for n, step in zip(shape, stride, strict=False))
        if len(shape) == len(stride) and 0 < math.prod(shape) <= len(flat) - offset > last:
            return flat.as_strided(shape, stride, offset).clone(
                memory_format=torch.contiguous_format
            )
    raise ValueError(f"is damaged: {name} does not fit in its storage of {len(flat)} values")


def _storage(value: object, name: str) -> Tensor:
    """All values [numel] of a pickled storage, without a copy."""
    if not isinstance(value, Record) or value.name != _ARCHIVE or len(value.args) != 1:
        raise ValueError(f"must hold a storage of torch for {name}, holds {kind_of(value)}")
    data = as_bytes(value.args[0], name)
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
