"""Files of JSON lines that survive an interrupted write.

Lines are only ever appended, so that a stop, a full disk or a power cut damages the line that was
being written and no other. Readers pass over such a line and say so; the next writer starts a new
line after it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edm2lite.atomic import naming, sync

_NAMED = 3
"""Number of damaged lines that a notice names before it only counts them."""


def read_lines(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The JSON objects in a file, one per line, and what was wrong with the others.

    A line is whole if it is a JSON object; a prefix of one never is. All other lines are left out:
    one that was cut short, also if a later line follows, a blank one, and bytes that are not text.

    Args:
        path: The file; it need not exist.

    Returns:
        The objects in the order of the file, and notices for people: none, or one that names the
        file and the lines that were left out.

    Raises:
        OSError: If the file is there and cannot be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "stats.jsonl"
        >>> _ = path.write_text('{"nimg": 64}' + chr(10) + '{"nimg": 128, "lo')
        >>> records, notices = read_lines(path)
        >>> records
        [{'nimg': 64}]
        >>> [notice.removeprefix(str(path)) for notice in notices]
        [': line 2 is not a whole JSON object and was left out']
    """
    with naming(path):
        content = path.read_bytes() if path.exists() else b""
    *lines, last = content.split(b"\n")
    lines += [last] if last else []
    found = [_object(line) for line in lines]
    damaged = [str(number) for number, entry in enumerate(found, 1) if entry is None]
    return [entry for entry in found if entry is not None], _notices(path, damaged)


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add a JSON object as a line, on disk before this returns.

    A last line that was cut short is ended first, so that it costs nothing but itself.

    Args:
        path: The file. It is created if need be, its folder is not.
        record: The object.

    Raises:
        OSError: If the line cannot be written; the error names the file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "stats.jsonl"
        >>> _ = path.write_text('{"nimg": 64}' + chr(10) + '{"nimg": 128, "lo')
        >>> append_line(path, {"nimg": 128})
        >>> read_lines(path)[0]
        [{'nimg': 64}, {'nimg': 128}]
    """
    line = json.dumps(record).encode() + b"\n"
    with naming(path), open(path, "ab+") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    if not size:
        sync(path.parent)


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _notices(path: Path, damaged: list[str]) -> list[str]:
    if not damaged:
        return []
    if len(damaged) == 1:
        return [f"{path}: line {damaged[0]} is not a whole JSON object and was left out"]
    named = ", ".join(damaged[:_NAMED]) + (", ..." if len(damaged) > _NAMED else "")
    return [f"{path}: {len(damaged)} lines ({named}) are not whole JSON objects and were left out"]
