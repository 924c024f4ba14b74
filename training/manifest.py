"""Digests of the files in a checkpoint: written last, checked before anything is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import xxhash

from edm2lite.atomic import replacing
from edm2lite.strict_json import parse

NAME = "digests.json"
FORMAT = "edm2lite.checkpoint/1"
_BLOCK = 8 * 2**20

Entry = tuple[int, str]
"""Size of a file in bytes, and its xxh3-128 digest in hexadecimal."""


def finished(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first.

    Example:
        >>> finished(Path("runs/none/checkpoints"))
        []
    """
    return sorted(p for p in folder.glob("*") if re.fullmatch(r"\d{12}", p.name))


def entry(path: Path) -> Entry:
    """Size and digest of a file, in bounded memory.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "empty"
        >>> path.touch()
        >>> entry(path)
        (0, '99aa06d3014798d86001c324468d497f')
    """
    state, size = xxhash.xxh3_128(), 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            state.update(block)
            size += len(block)
    return size, state.hexdigest()


def write(folder: Path, files: dict[str, Entry]) -> None:
    """Write the manifest of a checkpoint.

    Args:
        folder: Folder of the checkpoint.
        files: Name of every file -> its :func:`entry`.
    """
    text = _text(files)
    with replacing(folder / NAME) as file:
        json.dump(
            {**json.loads(text), "digest": xxhash.xxh3_128_hexdigest(text.encode())}, file, indent=1
        )


def read(folder: Path) -> dict[str, Entry]:
    """The files that a checkpoint should hold, by name.

    Raises:
        ValueError: If the manifest is missing or damaged.
    """
    try:
        values = parse((folder / NAME).read_bytes())
        files = {name: (int(size), str(hex_)) for name, (size, hex_) in values["files"].items()}
        intact = values["digest"] == xxhash.xxh3_128_hexdigest(_text(files).encode())
    except FileNotFoundError:
        raise ValueError(f"it has no {NAME}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        intact, files = False, {}
    if not intact:
        raise ValueError(f"its {NAME} is damaged")
    return files


def check(folder: Path, files: dict[str, Entry], names: Iterable[str]) -> None:
    """Raise ValueError unless the files of these names hold what was written."""
    for name in names:
        try:
            found = entry(folder / name)
        except FileNotFoundError:
            raise ValueError(f"its file {name} is missing") from None
        except OSError as error:
            raise ValueError(f"its file {name} cannot be read ({error.strerror})") from error
        if found != files[name]:
            raise ValueError(
                f"its file {name} holds {found[0]} bytes of digest {found[1]}, written were"
                f" {files[name][0]} of {files[name][1]}"
            )


def _text(files: dict[str, Entry]) -> str:
    ordered = {name: list(files[name]) for name in sorted(files)}
    return json.dumps({"format": FORMAT, "files": ordered}, separators=(",", ":"))
