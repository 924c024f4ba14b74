"""Names of classes: how a file keeps them, how a picture shows them, how a person chooses by them.

A class is chosen by its name, by its number, or by the beginning of its name if no other name
begins so::

    Flags             Flags,Food        0,3         0-3        all
    name:2            number:2          where one class is named 2 and another one has that number

A class without a name has the name "", and is chosen by its number.
"""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence

from edm2lite.messages import one_line
from edm2lite.strict_json import parse

CLASS_NAMES = "class_names"
"""Key in the metadata of a model file: a JSON list with the name of every class."""

_SHOWN = 60  # characters of a name in a message
_ALIKE = 0.4  # smallest similarity of a name that may have been meant, from 0 to 1


def class_title(names: Sequence[str], index: int) -> str:
    """What a class is called: its name, or else its number.

    Args:
        names: Names of the classes; "" for one without a name.
        index: Number of the class, -1 for none.

    Example:
        >>> names = ("Flags", "")
        >>> class_title(names, 0), class_title(names, 1), class_title(names, -1)
        ('Flags', 'class 1', 'no class')
    """
    if index < 0:
        return "no class"
    name = one_line(names[index]) if index < len(names) else ""
    return name or f"class {index}"


def names_to_metadata(names: Sequence[str]) -> dict[str, str]:
    """Metadata of a model file that keeps the names; empty without names.

    Example:
        >>> names_to_metadata(["Flags", "Food"])
        {'class_names': '["Flags", "Food"]'}
    """
    return {CLASS_NAMES: json.dumps(list(names))} if any(names) else {}


def names_in_metadata(
    metadata: Mapping[str, str], num_classes: int, origin: str
) -> tuple[str, ...]:
    """The name of every class by the metadata of a model file; empty if it has no names.

    Classes that were added to the model since, as fine-tuning does, have no name.

    Args:
        metadata: Metadata of the model file.
        num_classes: Number of classes of the model.
        origin: Name of the model for messages.

    Raises:
        ValueError: If the names are not a JSON list of texts.

    Example:
        >>> names_in_metadata({"class_names": '["Flags", "Food"]'}, 3, "emoji")
        ('Flags', 'Food', '')
    """
    text = metadata.get(CLASS_NAMES)
    if text is None or not num_classes:
        return ()
    try:
        names = parse(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{CLASS_NAMES} in the metadata of {origin} must be a list of names, got"
            f" {one_line(text, _SHOWN)}; the file was altered"
        )
    names = names[:num_classes] + [""] * (num_classes - len(names))
    return tuple(names) if any(names) else ()


def chosen_classes(
    text: str, names: Sequence[str], num_classes: int, origin: str
) -> tuple[int, ...]:
    """Numbers of the classes that a text names: names, numbers, ranges, lists of them, or ``all``.

    Args:
        text: ``"Flags,Food"``, ``"3"``, ``"0-3"``, ``"all"``; see the text of this module. A name
            may hold commas.
        names: Names of the classes; empty if they have none.
        num_classes: Number of classes.
        origin: Name of the model for messages.

    Raises:
        ValueError: If a part is no class, or could be several.

    Example:
        >>> names = ("Flags", "Food & Drink", "Objects")
        >>> chosen_classes("Objects,Food", names, 3, "emoji"), chosen_classes("0-1", names, 3, "")
        ((2, 1), (0, 1))
        >>> chosen_classes("Flag,Objectz", names, 3, "emoji")
        Traceback (most recent call last):
        ValueError: class 'Objectz' must be one of the 3 classes of emoji; the nearest is 'Objects'
    """
    if text.strip() == "all":
        return tuple(range(num_classes))
    names, parts = [_plain(name) for name in names], text.split(",")
    found, begin, longest = list[int](), 0, 1 + max((n.count(",") for n in names), default=0)
    while begin < len(parts):
        for end in range(min(begin + longest, len(parts)), begin, -1):
            part = _plain(",".join(parts[begin:end]))
            if end == begin + 1 or part in names:
                found += _one(part, names, num_classes, origin)
                begin = end
                break
    return tuple(found)


def _plain(name: str) -> str:
    """A name as it is compared: spaces and accents can be written in several ways."""
    return unicodedata.normalize("NFC", one_line(name))


def _one(part: str, names: Sequence[str], num_classes: int, origin: str) -> Sequence[int]:
    """The classes that a single name, number or range stands for."""
    named = [k for k, name in enumerate(names) if name == part and part]
    numbered = _numbers(part, num_classes, origin)
    if named and numbered and named != [*numbered]:
        raise ValueError(
            f"class {part} must be one class of {origin}, it is the name of class number {named[0]}"
            f" and a number too; write name:{part} or number:{part}"
        )
    if not named and part.startswith("name:"):
        part = part.removeprefix("name:")
        named = [k for k, name in enumerate(names) if name == part]
    if not named and numbered is not None:
        return numbered
    if not named and part:
        named = [k for k, n in enumerate(names) if n.casefold().startswith(part.casefold())]
    if len(named) == 1:
        return named
    raise ValueError(_unknown(part, names, num_classes, origin, named))


def _numbers(part: str, num_classes: int, origin: str) -> range | None:
    """The numbers of a number or range, None for other text."""
    match = re.fullmatch(r"(?:number:)?(\d{1,9})(?:-(\d{1,9}))?", part, re.ASCII)
    if match is None:
        return None
    found = range(int(match[1]), int(match[2] or match[1]) + 1)
    return found if found and found[-1] < num_classes else None


def _unknown(
    part: str, names: Sequence[str], num_classes: int, origin: str, alike: Sequence[int]
) -> str:
    shown = f"class {one_line(part, _SHOWN)!r}"
    numbers = f"0 to {num_classes - 1}"
    if alike:
        some = ", ".join(f"{k} {class_title(names, k)!r}" for k in alike[:3])
        more = ", ..." if len(alike) > 3 else ""
        return (
            f"{shown} must be one class of {origin}, {len(alike)} have that name or beginning"
            f" ({some}{more}); give more of it, or the number"
        )
    if not any(names):
        return (
            f"{shown} must be a number of a class of {origin}, {numbers}, a range or list of them,"
            " or all; its classes have no names"
        )
    if re.fullmatch(r"[\d-]+", part):
        return f"{shown} must be one of the {num_classes} classes of {origin}, {numbers}"
    named = [one_line(name, _SHOWN) for name in names if name]
    near = difflib.get_close_matches(part, named, n=1, cutoff=_ALIKE)
    advice = f"the nearest is {near[0]!r}" if near else f"for example {named[0]!r}"
    return f"{shown} must be one of the {num_classes} classes of {origin}; {advice}"
