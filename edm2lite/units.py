"""Text forms of counts, lists and model names, as people type them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}
_PARAMETERS = {"K": 1e3, "M": 1e6, "B": 1e9}
_DECIMAL = {"k": 1e3, "M": 1e6, "G": 1e9}


def _scaled(text: str, units: Mapping[str, float]) -> float | None:
    """The number that ``text`` writes with one of the units, or with none; None if it does not."""
    number = r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
    match = re.fullmatch(rf"{number}\s*({'|'.join(units)})?", text.strip())
    return float(match[1]) * units.get(match[2], 1) if match else None


def parse_count(value: object) -> object:
    """``8Mi`` -> 8388608, ``"12"`` -> 12; what is no count comes back as it is."""
    number = _scaled(value, _BINARY) if isinstance(value, str) else None
    return int(number) if number is not None and number.is_integer() else value


def parse_params(text: str) -> int:
    """``280M`` -> 280000000, ``1.5B``, ``12K`` or a plain whole number: powers of ten.

    Raises:
        ValueError: Not such a number.
    """
    value = _scaled(text, _PARAMETERS) or 0
    if not 1 <= value < float("inf") or abs(value - round(value)) > 1e-6 * value:
        raise ValueError(f"{text!r} must be a number of parameters, as in 280M, 1.5B or 5000")
    return round(value)


def parse_amount(text: str) -> float:
    """``500k`` -> 500000, ``1.5M``, ``8Mi`` or ``1e6``: k, M, G are powers of ten.

    Raises:
        ValueError: Not such a number, or not positive.
    """
    value = _scaled(text, _BINARY | _DECIMAL) or 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{text!r} must be a positive number, as in 500k, 1.5M, 8Mi or 1e6")
    return value


def format_amount(value: float) -> str:
    """Four digits and a power of ten: 4652024 -> ``4.652M``."""
    for unit, size in reversed(_DECIMAL.items()):
        if value >= 0.99995 * size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def parse_floats(text: str) -> list[float]:
    """``0.05,0.10`` and ``0.02:0.25:0.01`` (start, end included, step), mixed freely.

    Raises:
        ValueError: Not numbers, or a range that does not advance.
    """
    values: list[float] = []
    for part in text.split(","):
        try:
            numbers = [float(number) for number in part.split(":")]
        except ValueError:
            raise ValueError(
                f"{part!r} must be a number or start:end:step, as in 0.02:0.25:0.01"
            ) from None
        if len(numbers) == 1:
            values += numbers
        elif len(numbers) == 3 and numbers[2] > 0 and numbers[1] >= numbers[0]:
            start, end, step = numbers
            count = int(np.floor((end - start) / step + 1e-9)) + 1
            values += [round(start + i * step, 12) for i in range(count)]
        else:
            raise ValueError(f"{part!r} must be start:end:step with start <= end and step > 0")
    return values


def parse_range(text: str) -> tuple[float, float]:
    """``0.02:0.25`` -> (0.02, 0.25).

    Raises:
        ValueError: Not two numbers in ascending order.
    """
    try:
        low, high = (float(number) for number in text.split(":"))
    except ValueError:
        raise ValueError(f"{text!r} must be low:high, as in 0.02:0.25") from None
    if not 0 < low <= high:
        raise ValueError(f"{text!r} must be low:high with 0 < low <= high")
    return low, high


def parse_interval(text: str) -> tuple[str, float, float]:
    """``0.28,2.90`` -> ("levels", 0.28, 2.9); ``15-21`` -> ("steps", 15, 21).

    Raises:
        ValueError: Neither.
    """
    if match := re.fullmatch(r"(\d+)-(\d+)", text):
        return "steps", int(match[1]), int(match[2])
    try:
        low, high = (float(number) for number in text.split(","))
    except ValueError:
        raise ValueError(
            f"{text!r} must be two noise levels, as in 0.28,2.90, or steps, as in 15-21"
        ) from None
    return "levels", low, high


def parse_seeds(text: str) -> list[int]:
    """``0-9`` or ``1,2,5-7`` -> the seeds, in the order given.

    Raises:
        ValueError: Not whole numbers, or a range that runs backwards.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f"{part!r} must be a seed or a range of seeds, as in 0-49999")
        seeds.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return seeds
