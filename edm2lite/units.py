"""Counts, amounts, lists and ranges as people type them on a command line or in a YAML file."""

from __future__ import annotations

import math
import re
from decimal import Decimal

_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_DECIMAL = {"k": 10**3, "M": 10**6, "G": 10**9}
_UNITS = {**_BINARY, **_DECIMAL, "K": 10**3, "B": 10**9, "T": 10**12}
_NUMBER = re.compile(rf"(\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d{{1,2}})?)\s*({'|'.join(_UNITS)})?")
_MOST_NUMBERS, _MOST_SEEDS = 10**5, 10**7  # in a list


def _scaled(text: str) -> Decimal | None:
    """The number written in ``text``, with or without a unit; None if it is not one."""
    match = _NUMBER.fullmatch(text.strip())
    return Decimal(match[1].replace("_", "")) * _UNITS.get(match[2], 1) if match else None


def parse_count(value: object) -> object:
    """The whole number written as ``8Mi``, ``10k`` or ``"12"``; anything else comes back unchanged.

    Ki, Mi, Gi and Ti are powers of 1024; k (or K), M, G (or B) and T are powers of 1000.

    Example:
        >>> parse_count("8Mi"), parse_count("1.5M"), parse_count("1e6"), parse_count("digits")
        (8388608, 1500000, 1000000, 'digits')
    """
    number = _scaled(value) if isinstance(value, str) else None
    is_whole = number is not None and number < 2**63 and number == int(number)
    return int(number) if number is not None and is_whole else value


def parse_whole(text: str) -> int:
    """The whole number written as in :func:`parse_count`.

    Raises:
        ValueError: If ``text`` is not a whole number of at most 63 bits.

    Example:
        >>> parse_whole("300G"), parse_whole("64Ki")
        (300000000000, 65536)
    """
    value = parse_count(text)
    if not isinstance(value, int):
        raise ValueError(f"{text!r} must be a whole number, as in 50000, 10k, 64Ki, 1e6 or 300G")
    return value


def parse_amount(text: str) -> float:
    """The amount written as in :func:`parse_count`, which need not be whole.

    Raises:
        ValueError: If ``text`` is not a positive finite number in one of these forms.

    Example:
        >>> parse_amount("500k"), parse_amount("8Mi"), parse_amount("0.5")
        (500000.0, 8388608.0, 0.5)
    """
    value = float(_scaled(text) or 0)
    if not 0 < value < float("inf"):
        raise ValueError(f"{text!r} must be a positive number, as in 500k, 1.5M, 8Mi or 1e6")
    return value


def format_amount(value: float) -> str:
    """``value`` with four significant digits and k, M or G for powers of 10.

    Example:
        >>> format_amount(4652024)
        '4.652M'
    """
    for unit, size in reversed(_DECIMAL.items()):
        if value >= 0.99995 * size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def format_count(count: int) -> str:
    """A whole number in the largest of Gi, Mi and Ki that divides it; :func:`parse_count` reads it.

    Example:
        >>> format_count(8388608), format_count(1000)
        ('8Mi', '1000')
    """
    for unit, size in reversed(_BINARY.items()):
        if count and count % size == 0:
            return f"{int(count // size)}{unit}"
    return str(count)


def format_bytes(num_bytes: int) -> str:
    """A number of bytes with three significant digits, in kB, MB, GB or TB: powers of 10.

    Example:
        >>> format_bytes(512), format_bytes(1_234_567_890)
        ('512 B', '1.23 GB')
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes} B"


def format_duration(seconds: float) -> str:
    """A length of time in at most two units, of which the smaller one is rounded.

    Example:
        >>> format_duration(7.4), format_duration(125), format_duration(19_000)
        ('7 s', '2 min 5 s', '5 h 17 min')
        >>> format_duration(5 * 86_400)
        '5 days'
    """
    left = round(seconds)
    for size, unit, below in ((86_400, "days", 3600), (3600, "h", 60), (60, "min", 1)):
        if left >= size:
            left = round(left / below) * below  # to the smaller unit
            many, rest = divmod(left, size)
            name = "day" if unit == "days" and many == 1 else unit
            smaller = f" {rest // below} {'h' if below == 3600 else 'min' if below == 60 else 's'}"
            return f"{many} {name}{smaller if rest else ''}"
    return f"{left} s"


def format_percent(fraction: float) -> str:
    """A fraction as a percentage with four significant digits.

    Example:
        >>> format_percent(0.13), format_percent(0.1)
        ('13 %', '10 %')
    """
    return f"{100 * fraction:.4g} %"


def parse_floats(text: str) -> list[float]:
    """The numbers of a comma-separated list of numbers and ranges ``start:end:step``.

    A range includes its end.

    Raises:
        ValueError: If a part is neither a number nor a range that advances from start to end, or
            the list is longer than any use of it.

    Example:
        >>> parse_floats("0.5,0.02:0.05:0.01")
        [0.5, 0.02, 0.03, 0.04, 0.05]
    """
    values: list[float] = []
    for part in text.split(","):
        try:
            numbers = [float(number) for number in part.split(":")]
        except ValueError:
            numbers = []
        is_finite = all(map(math.isfinite, numbers)) or numbers == [math.inf]
        if not numbers or not is_finite:
            raise ValueError(f"{part!r} must be a number or start:end:step, as in 0.02:0.25:0.01")
        if len(numbers) == 1:
            values += numbers
        elif len(numbers) == 3 and numbers[2] > 0 and numbers[1] >= numbers[0]:
            start, end, step = numbers
            if (end - start) / step > _MOST_NUMBERS:
                raise ValueError(f"{part!r} must be a range of at most {_MOST_NUMBERS} numbers")
            count = math.floor((end - start) / step + 1e-9) + 1
            values += [round(start + i * step, 12) for i in range(count)]
        else:
            raise ValueError(f"{part!r} must be start:end:step with start <= end and step > 0")
    return values


def parse_range(text: str) -> tuple[float, float]:
    """The lower and upper end of a range written as ``low:high``, both positive.

    Raises:
        ValueError: If ``text`` is not two positive numbers in ascending order.

    Example:
        >>> parse_range("0.02:0.25")
        (0.02, 0.25)
    """
    try:
        low, high = (float(number) for number in text.split(":"))
    except ValueError:
        raise ValueError(f"{text!r} must be low:high, as in 0.02:0.25") from None
    if not 0 < low <= high:
        raise ValueError(f"{text!r} must be low:high with 0 < low <= high")
    return low, high


def parse_interval(text: str) -> tuple[str, float, float]:
    """A guidance interval, given as two noise levels ``low,high`` or two steps ``first-last``.

    Returns:
        ``"levels"`` or ``"steps"``, and the two ends.

    Raises:
        ValueError: If ``text`` has neither of the two forms.

    Example:
        >>> parse_interval("0.28,2.90"), parse_interval("15-21")
        (('levels', 0.28, 2.9), ('steps', 15, 21))
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
    """The seeds of a comma-separated list of seeds and ranges ``first-last``, in that order.

    Raises:
        ValueError: If a part is not a whole number or a range of them in ascending order, a seed
            has more than 63 bits, or there are more than ten million.

    Example:
        >>> parse_seeds("1,2,5-7")
        [1, 2, 5, 6, 7]
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None or len(part) > 50 or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f"{part[:50]!r} must be a seed or a range of seeds, as in 0-49999")
        found = range(int(match[1]), int(match[2] or match[1]) + 1)
        if found[-1] >= 2**63 or len(seeds) + found[-1] - found[0] >= _MOST_SEEDS:
            raise ValueError(
                f"{part!r} must be seeds below 2**63, and at most {_MOST_SEEDS:,} at a time"
            )
        seeds.extend(found)
    return seeds
