"""Who holds an output: host, process, since when; and whether that process still lives."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

Holder = Mapping[str, object]
"""What a lock file says of the process that holds it; empty if that could not write it."""


def this_process() -> dict[str, object]:
    """What a lock file of this process says.

    Example:
        >>> is_alive(this_process(), place())
        True
    """
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": Path(sys.argv[0]).name,
        "place": place(),
        "started": _started(os.getpid()),
    }


def read_holder(descriptor: int) -> Holder:
    """What an open lock file says; nothing if its holder was killed before it wrote.

    A copy of a lock file, as in a copy of the folder of a run that goes on, says nothing either.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryFile() as file:
        ...     read_holder(file.fileno())
        {}
    """
    try:
        record = json.loads(os.pread(descriptor, 4096, 0))
        is_whole = isinstance(record, dict) and isinstance(record["pid"], int)
        return record if is_whole and record["inode"] == os.fstat(descriptor).st_ino else {}
    except (ValueError, KeyError):
        return {}


def describe(holder: Holder) -> str:
    """The holder in words.

    Example:
        >>> describe({"pid": 7, "host": "node1", "since": "2026-01-31", "command": "edm2lite"})
        'process 7 on node1 (since 2026-01-31, edm2lite)'
    """
    if not holder:
        return "another process"
    return "process {pid} on {host} (since {since}, {command})".format_map(
        {key: holder.get(key, "?") for key in ("pid", "host", "since", "command")}
    )


def place() -> str:
    """Where process numbers mean the same: a host since it was started, a container in it."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"


def is_alive(holder: Holder, here: str) -> bool | None:
    """Whether the holder lives; None if it is not of this place, from where that is not seen.

    Args:
        holder: The holder.
        here: The :func:`place` of this process.
    """
    if holder.get("place") != here:
        return None
    return _started(int(str(holder["pid"]))) == holder.get("started")


def _started(pid: int) -> int | None:
    """When a process was started, in ticks since the host was; None if there is none.

    One that was killed and that its parent has not asked about, is none.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if stat[0] in ("Z", "X") else int(stat[19])
