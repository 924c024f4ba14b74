"""Images, as pixels or latents, and what is known about them: converted, encoded, checked, read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edm2lite.lazy import exports

if TYPE_CHECKING:
    from edm2lite.dataset.base import ImageDataset as ImageDataset
    from edm2lite.dataset.checks import find_problems as find_problems
    from edm2lite.dataset.collection import open_collection as open_collection
    from edm2lite.dataset.conditions import DatasetCondition as DatasetCondition
    from edm2lite.dataset.conversion import Conversion as Conversion
    from edm2lite.dataset.convert import convert_images as convert_images
    from edm2lite.dataset.encode import encode_images as encode_images
    from edm2lite.dataset.opening import open_dataset as open_dataset
    from edm2lite.dataset.preview import draw_preview as draw_preview
    from edm2lite.dataset.summary import summarize as summarize
    from edm2lite.dataset.text import with_text as with_text

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "edm2lite.dataset.base": "ImageDataset",
        "edm2lite.dataset.checks": "find_problems",
        "edm2lite.dataset.collection": "open_collection",
        "edm2lite.dataset.conditions": "DatasetCondition",
        "edm2lite.dataset.conversion": "Conversion",
        "edm2lite.dataset.convert": "convert_images",
        "edm2lite.dataset.encode": "encode_images",
        "edm2lite.dataset.opening": "open_dataset",
        "edm2lite.dataset.preview": "draw_preview",
        "edm2lite.dataset.summary": "summarize",
        "edm2lite.dataset.text": "with_text",
    },
)
