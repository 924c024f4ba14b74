"""What the time of a run can be counted in."""

from __future__ import annotations

CLOCKS = ("images", "tokens", "steps")
"""Units of training time. Nothing is converted; files of one run count one of them."""


def checked_clock(clock: str) -> str:
    """A clock by its name.

    Args:
        clock: One of :data:`CLOCKS`.

    Raises:
        ValueError: If it is another name.

    Example:
        >>> checked_clock("tokens")
        'tokens'
    """
    if clock not in CLOCKS:
        raise ValueError(f"clock must be one of {', '.join(CLOCKS)}, got {clock!r}")
    return clock


def clock_metadata(clock: str) -> dict[str, str]:
    """What files record of a clock: nothing for images, as in files of earlier versions.

    Args:
        clock: One of :data:`CLOCKS`.

    Example:
        >>> clock_metadata("images"), clock_metadata("steps")
        ({}, {'clock': 'steps'})
    """
    return {} if clock == "images" else {"clock": clock}
