"""Official EDM2 files whose network ours cannot be: refused by name, before anything is written."""

import pytest
import torch
from official_files import (
    LATENTS,
    official_network,
    persistent,
    random_net,
    rgb_encoder,
    vae_encoder,
    write,
)
from torch import nn

from edm2lite.interop.edm2 import import_file


def change(kind):
    """A network or encoder with one thing wrong."""
    official, encoder = official_network(random_net()), rgb_encoder()
    unet, block = official.unet, official.unet.dec["4x4_in0"]
    match kind:
        case "shape":
            unet.out_conv.weight = nn.Parameter(torch.zeros(3, 8, 3, 3))
        case "nan":
            unet.out_gain = nn.Parameter(torch.tensor(torch.nan))
        case "missing":
            del unet.out_conv
        case "unknown":
            unet.register_buffer("lora", torch.zeros(3))
        case "filter":
            block.resample_filter = torch.tensor([0.25, 0.75, 0.75, 0.25])
        case "heads":
            block.num_heads = 4
        case "class":
            block.attn_proj.__class__ = type("LoRAConv", (type(block.attn_proj),), {})
        case "outer class":
            official = persistent("VPPrecond", nn.Module)
        case "shared":
            unet.dec["4x4_in1"] = block
        case "dtype":
            unet.out_gain = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        case "encoder class":
            encoder = persistent("FluxEncoder")
        case "encoder setting":
            encoder = vae_encoder(latent_scale=2)
        case "autoencoder":
            official = official_network(random_net(LATENTS))
            encoder = vae_encoder(vae_name="../../weights")
        case "encoder scale":
            official = official_network(random_net(LATENTS))
            encoder = vae_encoder(raw_std=[1.0, 1.0, 1.0, 1.0])
        case "twice":
            official._init_args = (8,)
        case "too many":
            unet._init_args, unet._init_kwargs = tuple(range(12)), {}
        case "encoder by position":
            encoder._init_args = ("stabilityai/sd-vae-ft-mse",)
        case "wrong by position":
            official._init_kwargs.clear()
            official._init_args = (8, 2, 4)
        case "no resolution":
            del official._init_kwargs["img_resolution"], unet._init_kwargs["img_resolution"]
        case _:
            name, value = kind
            official._init_kwargs[name] = value
            unet._init_kwargs.pop(name, None)
    return official, encoder


@pytest.mark.parametrize(
    "kind, message",
    [
        ("shape", r"unet.out_conv.weight of shape \[2, 8, 3, 3\].* has \[3, 8, 3, 3\]"),
        ("nan", "finite weights, unet.out_gain"),
        ("missing", "missing unet.out_conv.weight"),
        ("unknown", "unknown unet.lora"),
        ("filter", "2x2 boxes, unet.dec.4x4_in0.resample_filter"),
        ("heads", "unet.dec.4x4_in0 has 4 of them in place of 2"),
        ("class", "unet.dec.4x4_in0.attn_proj is of class LoRAConv"),
        ("outer class", "ema is of class VPPrecond"),
        ("shared", "occurs twice"),
        ("dtype", "asks for torch.DoubleStorage"),
        ("encoder class", "class FluxEncoder"),
        ("encoder setting", "sets latent_scale of its encoder"),
        ("autoencoder", "name on the Hub as vae_name, has ../../weights"),
        ("encoder scale", "contradicts itself: scale"),
        ("twice", "contradicts itself: img_resolution of ema is set twice"),
        ("too many", "at most 11 settings of unet by position, holds 12"),
        ("encoder by position", "at most 0 settings of encoder by position, holds 1"),
        ("wrong by position", "contradicts itself: label_dim is 4, but 3 in"),
        ("no resolution", "img_resolution"),
        (("use_rope", True), "sets use_rope"),
        (("resample_filter", [1, 3, 3, 1]), "resample_filter"),
        (("channel_mult_emb", 8), "channel_mult_emb"),
        (("clip_act", 16), "contradicts itself: clip_act is 16.0, but 256.0 in unet.enc"),
        (("label_dim", 4), "contradicts itself: label_dim"),
        (("sigma_data", float("nan")), "positive number as sigma_data, has nan"),
        (("model_channels", 10**12), "whole number up to 65536 as model_channels"),
        (("model_channels", True), "as model_channels, has True"),
        (("channel_mult", [1] * 40), "channel_mult"),
        (("channel_mult", []), "channel_mult"),
        (("num_blocks", 200), "num_blocks must give at most 512 blocks"),
        (("img_resolution", 7), "not supported here: img_resolution must be a multiple"),
        (("channels_per_head", 5), "not supported here: a level that attends"),
        (("attn_resolutions", [8, 4]), "missing unet.dec.8x8_block0.attn_proj.weight"),
        (("use_fp16", "yes"), "True or False as use_fp16, has yes"),
        (("res_balance", 1.5), "from 0 to 1 as res_balance, has 1.5"),
    ],
)  # fmt: skip
def test_what_our_network_cannot_be_is_refused_by_name(tmp_path, kind, message):
    official, encoder = change(kind)
    path = write(tmp_path / "a.pkl", network=official, encoder=encoder)
    with pytest.raises(ValueError, match=message) as caught:
        import_file(path)
    assert str(caught.value).startswith(f"{path} ") and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path], "nothing is written"
