"""Objects that files describe by a ``kind`` and its settings: encoders of images and of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from edm2lite.kinds import Kinds
from edm2lite.messages import one_line
from edm2lite.strict_json import check_fields, parse_object

T = TypeVar("T")


def described(text: str, kinds: Kinds[type[T]], base: type, what: str, origin: str) -> T:
    """The object that a text in a file describes; no module is imported for it.

    Args:
        text: JSON of its fields, with the ``kind``.
        kinds: Kinds that there are.
        base: Class that it must be of.
        what: Noun for messages.
        origin: Name of the file in messages.

    Raises:
        ValueError: If this version does not know the kind or a setting.

    Example:
        >>> from edm2lite.models.encoders import ENCODERS, Encoder
        >>> described('{"kind": "pixels"}', ENCODERS, Encoder, "encoder", "a.safetensors").shift
        127.5
    """
    try:
        return built(parse_object(text), kinds, base, what)
    except ValueError as error:
        raise ValueError(
            f"the {what} of {origin} must be one this version knows, but {one_line(error, 300)};"
            " the file may be damaged or of a newer version"
        ) from error


def built(values: Mapping[str, Any], kinds: Kinds[type[T]], base: type, what: str) -> T:
    """The object of a parsed description; see :func:`described`.

    Args:
        values: Fields of the object, with the ``kind``; lists stand for tuples.
        kinds: Kinds that there are.
        base: Class that it must be of.
        what: Noun for messages.

    Raises:
        ValueError: If this version does not know the kind or a setting.

    Example:
        >>> from edm2lite.models.encoders import ENCODERS, Encoder
        >>> built({"kind": "pixels", "scale": 2.0}, ENCODERS, Encoder, "encoder").scale
        2.0
    """
    kind = str(values.get("kind"))
    cls: Any = kinds.find_class(kind, base, trusted=False, name=f"{what} kind")
    check_fields(cls, values)
    found: T = cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    return found
