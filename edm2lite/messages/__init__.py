"""Error messages in the form in which people meet them: one line."""

from __future__ import annotations


def one_line(message: object, limit: int | None = None) -> str:
    """The text of an error, or of any other value, without line breaks and repeated spaces.

    Args:
        message: The error; its text is ``str(message)``.
        limit: Largest number of characters to return. [default: no limit]

    Example:
        >>> one_line(ValueError("while parsing a flow node\\n  in 'setup.yaml', line 3"))
        "while parsing a flow node in 'setup.yaml', line 3"
    """
    return " ".join(str(message).split())[:limit]
