"""Text encoders by the name that a person gives, and by the description in a file."""

from __future__ import annotations

from typing import Any

from edm2lite.descriptions import built, described
from edm2lite.text.encoder import TEXT_ENCODERS, TextEncoder


def named_text_encoder(name: str, num_tokens: int = 77) -> TextEncoder:
    """The encoder that a command names: ``static``, ``static:PATH`` or ``transformers:PATH``.

    Args:
        name: Kind, and where it is.
        num_tokens: Number of tokens after which a text is cut off.

    Raises:
        ValueError: If there is no such kind, or the place is missing.

    Example:
        >>> named_text_encoder("transformers:openai/clip-vit-large-patch14").source
        'openai/clip-vit-large-patch14'
    """
    kind, _, source = name.partition(":")
    cls: Any = TEXT_ENCODERS.find(kind if kind in TEXT_ENCODERS else name)
    options = {"source": source} if source and kind in TEXT_ENCODERS else {}
    encoder: TextEncoder = cls(num_tokens=num_tokens, **options)
    return encoder


def text_encoder_from_json(text: str, origin: str = "this") -> TextEncoder:
    """The text encoder that a model file describes.

    Args:
        text: Description, as :meth:`TextEncoder.to_json` gives it.
        origin: Name of the file in messages.

    Raises:
        ValueError: If this version does not know the kind or a setting.

    Example:
        >>> text_encoder_from_json('{"kind": "static", "num_tokens": 16}').num_tokens
        16
    """
    return described(text, TEXT_ENCODERS, TextEncoder, "text encoder", origin)


def text_encoder_from_dict(values: dict[str, Any]) -> TextEncoder:
    """The text encoder of a parsed description; see :func:`text_encoder_from_json`.

    Example:
        >>> text_encoder_from_dict({"kind": "static", "mean": [0.5], "std": [2.0]}).std
        (2.0,)
    """
    return built(values, TEXT_ENCODERS, TextEncoder, "text encoder")
