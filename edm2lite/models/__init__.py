"""Models by name, the encoders between stored images and latents, and the Hugging Face Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edm2lite.lazy import exports

if TYPE_CHECKING:
    from edm2lite.models.encoders import Encoder as Encoder
    from edm2lite.models.encoders import LatentEncoder as LatentEncoder
    from edm2lite.models.encoders import PixelEncoder as PixelEncoder
    from edm2lite.models.hub import from_pretrained as from_pretrained
    from edm2lite.models.hub import push_to_hub as push_to_hub
    from edm2lite.models.hub import save_pretrained as save_pretrained
    from edm2lite.models.loading import Model as Model
    from edm2lite.models.loading import load as load
    from edm2lite.models.patches import PatchEncoder as PatchEncoder

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "edm2lite.models.encoders": "Encoder LatentEncoder PixelEncoder",
        "edm2lite.models.hub": "from_pretrained push_to_hub save_pretrained",
        "edm2lite.models.loading": "Model load",
        "edm2lite.models.patches": "PatchEncoder",
    },
)
