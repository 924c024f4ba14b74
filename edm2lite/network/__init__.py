"""What a denoiser is made of: layers, attention, networks. Knows no noise levels and no files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edm2lite.lazy import exports

if TYPE_CHECKING:
    from edm2lite.network.layers import MPConv as MPConv
    from edm2lite.network.layers import normalize_weights_ as normalize_weights_
    from edm2lite.network.unet import UNet as UNet
    from edm2lite.network.unet import UNetConfig as UNetConfig

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "edm2lite.network.layers": "MPConv normalize_weights_",
        "edm2lite.network.unet": "UNet UNetConfig",
    },
)
