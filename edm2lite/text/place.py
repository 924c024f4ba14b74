"""Where a text encoder is: in a folder, also one that has moved, or on the Hub."""

from __future__ import annotations

import os
from pathlib import Path

MOVED = "EDM2LITE_TEXT_ENCODER"
"""Environment variable: the place of a text encoder whose folder was on another machine."""


def present(source: str) -> str:
    """The place, or the content of the variable if it is a folder that is not on this machine.

    Raises:
        ValueError: If the folder is not there, and the variable is not set.
    """
    if not Path(source).is_absolute() or Path(source).exists():
        return source
    if MOVED not in os.environ:
        raise ValueError(
            f"the text encoder must be at {source}, which is not there; set {MOVED} to the folder"
            " or Hub name where it is now"
        )
    return os.environ[MOVED]


def may_download(place: str, download: bool) -> bool:
    """Whether a place is on the Hub and a person has named it."""
    return not Path(place).exists() and (download or place == os.environ.get(MOVED))


def absolute(source: str) -> str:
    """A path that exists here in full; other names as they are."""
    return str(Path(source).resolve()) if Path(source).exists() else source
