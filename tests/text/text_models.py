"""Files of small untrained models that are told text."""

import torch
from open_gains import open_network

from edm2lite.models.encoders import PixelEncoder
from edm2lite.network.text import UNetText
from edm2lite.network.unet import UNetConfig


def save_text_model(path, encoder, seed=0, label_dim=0, dropout="0.1", text=True):
    torch.manual_seed(seed)
    pooled, tokens = encoder.conditions
    told = UNetText(
        pooled=pooled.length, tokens=tokens.length, num_tokens=tokens.num_tokens,
        attn_resolutions=(8,),
    )  # fmt: skip
    net = open_network(
        UNetConfig(
            img_resolution=8, img_channels=1, label_dim=label_dim, model_channels=16,
            channel_mult=(1,), num_blocks=1, attn_resolutions=(), head_channels=16,
            text=told if text else None,
        )
    )  # fmt: skip
    metadata = {"encoder": PixelEncoder().to_json(), "label_dropout": dropout}
    if text:
        metadata["text_encoder"] = encoder.to_json()
    return str(net.save(path, metadata))
