"""The strength of an adapter, as it stands behind its name: ``FILE:0.5``."""

from __future__ import annotations

import math
from pathlib import Path

from edm2lite.ema.decays import NamedDecay


def parse_strength(text: str) -> tuple[str, float]:
    """The file and the strength in ``FILE:STRENGTH``; 1 if it is not given.

    The length of a decay, as in ``RUN@decay=cosine:0.2``, is no strength.

    Raises:
        ValueError: If the strength is not finite.

    Example:
        >>> parse_strength("cat.safetensors:0.5"), parse_strength("cat.safetensors")
        (('cat.safetensors', 0.5), ('cat.safetensors', 1.0))
        >>> parse_strength("runs/a@decay=linear:0.2"), parse_strength("a@decay=linear:0.2:0.5")
        (('runs/a@decay=linear:0.2', 1.0), ('a@decay=linear:0.2', 0.5))
    """
    path, colon, number = text.rpartition(":")
    try:
        strength = float(number)
    except ValueError:
        return text, 1.0
    if not colon or Path(text).exists() or _ends_in_decay(path):
        return text, 1.0
    if not math.isfinite(strength):
        raise ValueError(f"the strength of an adapter must be finite, got {text}")
    return path, strength


def _ends_in_decay(path: str) -> bool:
    """Whether a name ends within that of a decay, so that what follows is the length of it."""
    name = path.rpartition("@")[2].rpartition("decay=")
    if not name[1] or "," in name[2]:
        return False
    try:
        NamedDecay.parse(name[2])
    except ValueError:
        return True
    return False
