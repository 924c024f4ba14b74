"""Files that appear whole or not at all, but may be lost in a power cut: cheap to make again."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

from edm2lite.atomic import naming


def put(path: Path, data: bytes) -> None:
    """Write a file under another name and rename it; processes may do so at once, with equal bytes.

    Args:
        path: Final name; missing folders are made.
        data: Content of the file.

    Raises:
        OSError: If it cannot be written; the error names it, and nothing is left of it.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a" / "b.txt"
        >>> put(path, b"content")
        >>> path.read_bytes()
        b'content'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with naming(path), open(temporary, "xb") as file:
            file.write(data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def put_json(path: Path, value: Any) -> None:
    """Write a value as JSON by :func:`put`.

    Args:
        path: Final name.
        value: What JSON can hold.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.json"
        >>> put_json(path, [1, 2])
        >>> path.read_text()
        '[1, 2]'
    """
    put(path, json.dumps(value).encode())
