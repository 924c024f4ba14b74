"""A tiny configuration of every backbone of the library, for tests that hold for all of them."""

import dataclasses

from edm2lite.network.dit import DiTConfig
from edm2lite.network.mp_dit import MPDiTConfig
from edm2lite.network.text import TextConfig, UNetText
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

_TEXT = {"pooled": 6, "tokens": 6, "num_tokens": 4}

TEXT = {
    name: dataclasses.replace(
        backbone,
        text=UNetText(**_TEXT, attn_resolutions=(4,)) if name == "unet" else TextConfig(**_TEXT),
    )
    for name, backbone in BACKBONES.items()
}
"""The same with text: captions of up to 4 tokens of 6 numbers."""
