"""Reads pickles as data: plain values, and records of what a pickle asks to be built.

Nothing is imported, called or set. Where a pickle names a function or class, the reader returns a
:class:`Name` if the caller allows that name, and refuses the file otherwise. Where it asks for a
call, the reader returns a :class:`Record` of name and arguments, which the caller interprets.

Note [why not pickle.Unpickler]
    Overriding its ``find_class`` only controls names. Beyond it, BUILD sets attributes of what was
    found, such as the defaults of a library's function; a memo index of 2**31 reserves 32 GiB; and
    deeply nested tuples that repeat their elements take hours to hash. Here the number of
    instructions is limited, and long values are views of the file.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Any

MAX_INSTRUCTIONS = 1_000_000
"""Limit of instructions per pickle; the largest EDM2 network takes less than a tenth of it."""

_MAX_NUMBER = 32  # largest size of an integer, in bytes
_INSTRUCTIONS = {ord(instruction.code): instruction.name for instruction in pickletools.opcodes}
_RENAMED = {"__builtin__.": "builtins.", "numpy.core.": "numpy._core."}  # older names of modules


@dataclass(frozen=True, eq=False)
class Name:
    """A function or class that a pickle names, as ``module.name`` in current spelling."""

    dotted: str


@dataclass(frozen=True, eq=False)
class Reference:
    """An object that a pickle stores elsewhere, given by its persistent id."""

    key: object


@dataclass(eq=False)
class Record:
    """A call that a pickle asks for, and what it would do with the result.

    Attributes:
        name: Function or class to call.
        args: Arguments of the call.
        items: Entries to store in the result.
        state: State to give to the result; None if there is none.
    """

    name: str
    args: tuple[object, ...]
    items: dict[str | int, object] = field(default_factory=dict)
    state: object = None


def read_pickle(
    data: memoryview, names: Container[str], start: int = 0, *, record_keys: bool = False
) -> tuple[object, int]:
    """The value of a pickle of protocol 2 to 5, and the offset of its end.

    Bytes are returned as views of ``data``, sets as lists, and whatever is not a plain value as
    records.

    Args:
        data: Bytes that hold the pickle.
        names: Functions and classes that the pickle may name.
        start: Offset of its first byte.
        record_keys: Whether keys of dicts may be records; they are as many as there are, also equal
            ones.

    Raises:
        ValueError: If the pickle is truncated or damaged, or names anything else. The message
            continues a sentence that begins with the name of the file.

    Example:
        >>> data = memoryview(pickle.dumps({"w": [1, 2.5]}, protocol=2))
        >>> read_pickle(data, names=())[0]
        {'w': [1, 2.5]}
        >>> read_pickle(memoryview(pickle.dumps(exec)), names=())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: asks for builtins.exec, which does not belong in it; ...
    """
    reader = _Reader(data, names, start)
    reader.keys = (str, int, Record) if record_keys else (str, int)
    try:
        return reader.run(), reader.at
    except (KeyError, IndexError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"is not a valid pickle: damaged before byte {reader.at}") from error


def shown(value: object) -> str:
    """A value in the form used in error messages: short, on one line, containers by their type.

    Example:
        >>> shown("attn_proj"), shown([1, 2])
        ('attn_proj', 'list')
    """
    if isinstance(value, str):
        return value[:80] if value[:80].isprintable() and value else ascii(value[:80])
    plain = isinstance(value, bool | int | float) or value is None
    return repr(value) if plain else type(value).__name__.lower()


class _Reader:
    keys: tuple[type, ...] = (str, int)

    def __init__(self, data: memoryview, names: Container[str], start: int):
        self.data, self.names, self.at = data, names, start
        self.stack: list[object] = []
        self.marks: list[list[object]] = []
        self.memo: dict[int, object] = {}

    def run(self) -> object:
        for _ in range(MAX_INSTRUCTIONS):
            code = self.number("<B")
            if code == pickle.STOP[0]:
                (value,) = self.popped(1)
                return value
            if code in _VALUES:
                value = _VALUES[code](self)  # may change which stack is in use
                self.stack.append(value)
            elif code in _ACTIONS:
                _ACTIONS[code](self)
            else:
                what = _INSTRUCTIONS.get(code, f"{code:#04x}")
                raise ValueError(f"uses the pickle instruction {what}, which no such file needs")
        raise ValueError(f"takes more than {MAX_INSTRUCTIONS} pickle instructions to read")

    def take(self, count: int) -> memoryview:
        left = len(self.data) - self.at
        if not 0 <= count <= left:
            raise ValueError(f"is cut short or damaged: it needs {count} more bytes and has {left}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, kind: str) -> Any:
        return struct.unpack(kind, self.take(struct.calcsize(kind)))[0]

    def integer(self, kind: str) -> int:
        size = self.number(kind)
        if size > _MAX_NUMBER:
            raise ValueError(f"holds an integer of {size} bytes, which no such file needs")
        return int.from_bytes(self.take(size), "little", signed=True)

    def text(self, kind: str) -> str:
        return str(self.take(self.number(kind)), "utf-8")

    def lines(self) -> tuple[str, str]:
        module, name, _ = (*bytes(self.data[self.at :][:1000]).split(b"\n", 2), b"", b"")[:3]
        self.take(len(module) + len(name) + 2)
        return str(module, "utf-8"), str(name, "utf-8")

    def popped(self, count: int) -> tuple[object, ...]:
        if len(self.stack) < count:
            raise IndexError
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        return values

    def gathered(self) -> list[object]:
        values, self.stack = self.stack, self.marks.pop()
        return values

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def name(self, module: object, name: object) -> Name:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError
        dotted = f"{module}.{name}"
        for old, new in _RENAMED.items():
            if dotted.startswith(old):
                dotted = new + dotted.removeprefix(old)
        if dotted not in self.names:
            raise ValueError(
                f"asks for {shown(dotted)}, which does not belong in it; nothing of it was"
                " executed. Do not load this file with other tools"
            )
        return Name(dotted)

    def record(self, name: object, args: object) -> Record:
        if not isinstance(name, Name) or not isinstance(args, tuple):
            raise TypeError
        return Record(name.dotted, args)

    def build(self) -> None:
        (state,) = self.popped(1)
        target = self.stack[-1]
        if not isinstance(target, Record) or target.state is not None:
            raise TypeError
        target.state = state

    def append(self, values: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError
        target += values

    def store(self, values: list[object]) -> None:
        target = self.stack[-1]
        items = target.items if isinstance(target, Record) else target
        if not isinstance(items, dict) or len(values) % 2:
            raise TypeError
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in self.keys:
                raise TypeError
            items[key] = value

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]


_VALUES: dict[int, Callable[[_Reader], object]] = {
    code[0]: value
    for code, value in {
        pickle.NONE: lambda r: None,
        pickle.NEWTRUE: lambda r: True,
        pickle.NEWFALSE: lambda r: False,
        pickle.BININT: lambda r: r.number("<i"),
        pickle.BININT1: lambda r: r.number("<B"),
        pickle.BININT2: lambda r: r.number("<H"),
        pickle.LONG1: lambda r: r.integer("<B"),
        pickle.LONG4: lambda r: r.integer("<i"),
        pickle.BINFLOAT: lambda r: r.number(">d"),
        pickle.BINUNICODE: lambda r: r.text("<I"),
        pickle.SHORT_BINUNICODE: lambda r: r.text("<B"),
        pickle.BINUNICODE8: lambda r: r.text("<Q"),
        pickle.BINBYTES: lambda r: r.take(r.number("<I")),
        pickle.SHORT_BINBYTES: lambda r: r.take(r.number("<B")),
        pickle.BINBYTES8: lambda r: r.take(r.number("<Q")),
        pickle.BYTEARRAY8: lambda r: r.take(r.number("<Q")),
        pickle.EMPTY_LIST: lambda r: [],
        pickle.EMPTY_SET: lambda r: [],
        pickle.EMPTY_DICT: lambda r: {},
        pickle.EMPTY_TUPLE: lambda r: (),
        pickle.TUPLE1: lambda r: r.popped(1),
        pickle.TUPLE2: lambda r: r.popped(2),
        pickle.TUPLE3: lambda r: r.popped(3),
        pickle.TUPLE: lambda r: tuple(r.gathered()),
        pickle.BINGET: lambda r: r.memo[r.number("<B")],
        pickle.LONG_BINGET: lambda r: r.memo[r.number("<I")],
        pickle.GLOBAL: lambda r: r.name(*r.lines()),
        pickle.STACK_GLOBAL: lambda r: r.name(*r.popped(2)),
        pickle.REDUCE: lambda r: r.record(*r.popped(2)),
        pickle.NEWOBJ: lambda r: r.record(*r.popped(2)),
        pickle.BINPERSID: lambda r: Reference(*r.popped(1)),
    }.items()
}

_ACTIONS: dict[int, Callable[[_Reader], object]] = {
    code[0]: action
    for code, action in {
        pickle.PROTO: lambda r: r.number("<B"),
        pickle.FRAME: lambda r: r.number("<Q"),
        pickle.MARK: lambda r: r.mark(),
        pickle.APPEND: lambda r: r.append(list(r.popped(1))),
        pickle.APPENDS: lambda r: r.append(r.gathered()),
        pickle.ADDITEMS: lambda r: r.append(r.gathered()),
        pickle.SETITEM: lambda r: r.store(list(r.popped(2))),
        pickle.SETITEMS: lambda r: r.store(r.gathered()),
        pickle.BINPUT: lambda r: r.remember(r.number("<B")),
        pickle.LONG_BINPUT: lambda r: r.remember(r.number("<I")),
        pickle.MEMOIZE: lambda r: r.remember(len(r.memo)),
        pickle.BUILD: lambda r: r.build(),
    }.items()
}
