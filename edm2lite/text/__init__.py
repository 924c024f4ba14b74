"""Text encoders, from captions and prompts to what a network is told, and stores of captions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edm2lite.lazy import exports

if TYPE_CHECKING:
    from edm2lite.text.encoder import TextEncoder as TextEncoder
    from edm2lite.text.encoding import encode_captions as encode_captions
    from edm2lite.text.named import named_text_encoder as named_text_encoder
    from edm2lite.text.static import StaticTextEncoder as StaticTextEncoder
    from edm2lite.text.store import CaptionStore as CaptionStore
    from edm2lite.text.transformers import TransformersTextEncoder as TransformersTextEncoder

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "edm2lite.text.encoder": "TextEncoder",
        "edm2lite.text.encoding": "encode_captions",
        "edm2lite.text.named": "named_text_encoder",
        "edm2lite.text.static": "StaticTextEncoder",
        "edm2lite.text.store": "CaptionStore",
        "edm2lite.text.transformers": "TransformersTextEncoder",
    },
)
