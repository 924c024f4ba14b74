"""A tiny configuration of every backbone of the library, for tests that hold for all of them."""

from edm2lite.network.dit import DiTConfig
from edm2lite.network.mp_dit import MPDiTConfig
from edm2lite.network.unet import UNetConfig

_SHAPE = {"img_resolution": 8, "img_channels": 2, "label_dim": 5}
_TRANSFORMER = {**_SHAPE, "width": 32, "num_blocks": 2, "num_heads": 2, "mlp_ratio": 2}

BACKBONES = {
    "unet": UNetConfig(
        **_SHAPE, model_channels=16, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,),
        head_channels=16,
    ),
    "dit": DiTConfig(**_TRANSFORMER, time_scale=1.0),
    "mp_dit": MPDiTConfig(**_TRANSFORMER),
}  # fmt: skip
"""Name -> configuration: 8x8 images of 2 channels, 5 classes."""
