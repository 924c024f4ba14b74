"""What the time of a run can be counted in."""

from __future__ import annotations

import operator

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


def later_count(nimg: object, last: int) -> int:
    """A count after another one.

    Args:
        nimg: The count.
        last: The count before it.

    Raises:
        ValueError: If it is not a whole number, or did not grow.

    Example:
        >>> later_count(128, last=64)
        128
    """
    try:
        count = operator.index(nimg)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(
            f"nimg must be the number of images seen so far, a whole number, got {nimg!r}; count"
            " the images of all processes"
        ) from None
    if count <= last:
        raise ValueError(
            f"nimg must grow from update to update, got {count} after {last}; count the images of"
            " the step before the call"
        )
    return count


def clock_metadata(clock: str) -> dict[str, str]:
    """What files record of a clock: nothing for images, as in files of earlier versions.

    Args:
        clock: One of :data:`CLOCKS`.

    Example:
        >>> clock_metadata("images"), clock_metadata("steps")
        ({}, {'clock': 'steps'})
    """
    return {} if clock == "images" else {"clock": clock}
