"""The networks that benchmarks of speed share: digits, and the paper's on 4x64x64 latents."""

from __future__ import annotations

from edm2lite.network.unet import UNetConfig

_LATENTS = {"img_resolution": 64, "img_channels": 4, "label_dim": 1000}
NETWORKS = {
    "digits": UNetConfig(
        img_resolution=8, img_channels=1, label_dim=10, model_channels=32, channel_mult=(1, 2),
        num_blocks=1, attn_resolutions=(4,),
    ),
    "cifar": UNetConfig(
        img_resolution=32, img_channels=3, label_dim=10, model_channels=64,
        channel_mult=(1, 2, 2), num_blocks=2, attn_resolutions=(16,),
    ),
    "xxs": UNetConfig(**_LATENTS, model_channels=64),
    "xs": UNetConfig(**_LATENTS, model_channels=128),
    "s": UNetConfig(**_LATENTS, model_channels=192),
}  # fmt: skip
