"""What a denoiser is made of: layers, attention, networks. Knows no noise levels and no files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edm2lite.lazy import exports

if TYPE_CHECKING:
    from edm2lite.network.backbone import Backbone as Backbone
    from edm2lite.network.backbone import BackboneConfig as BackboneConfig
    from edm2lite.network.block import Block as Block
    from edm2lite.network.conditioning import Conditioning as Conditioning
    from edm2lite.network.conditions import ClassLabel as ClassLabel
    from edm2lite.network.conditions import Condition as Condition
    from edm2lite.network.conditions import ConditionImage as ConditionImage
    from edm2lite.network.conditions import Tokens as Tokens
    from edm2lite.network.conditions import Vector as Vector
    from edm2lite.network.dit import DiTConfig as DiTConfig
    from edm2lite.network.ladder.config import LadderConfig as LadderConfig
    from edm2lite.network.layers import MPConv as MPConv
    from edm2lite.network.layers import MPFourier as MPFourier
    from edm2lite.network.layers import normalize_weights_ as normalize_weights_
    from edm2lite.network.mp_dit import MPDiTConfig as MPDiTConfig
    from edm2lite.network.operations import mp_cat as mp_cat
    from edm2lite.network.operations import mp_join as mp_join
    from edm2lite.network.operations import mp_silu as mp_silu
    from edm2lite.network.operations import mp_sum as mp_sum
    from edm2lite.network.operations import pixel_norm as pixel_norm
    from edm2lite.network.text import TextConfig as TextConfig
    from edm2lite.network.text import UNetText as UNetText
    from edm2lite.network.unet import UNet as UNet
    from edm2lite.network.unet import UNetConfig as UNetConfig

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "edm2lite.network.backbone": "Backbone BackboneConfig",
        "edm2lite.network.block": "Block",
        "edm2lite.network.conditioning": "Conditioning",
        "edm2lite.network.conditions": "ClassLabel Condition ConditionImage Tokens Vector",
        "edm2lite.network.dit": "DiTConfig",
        "edm2lite.network.ladder.config": "LadderConfig",
        "edm2lite.network.layers": "MPConv MPFourier normalize_weights_",
        "edm2lite.network.mp_dit": "MPDiTConfig",
        "edm2lite.network.operations": "mp_cat mp_join mp_silu mp_sum pixel_norm",
        "edm2lite.network.text": "TextConfig UNetText",
        "edm2lite.network.unet": "UNet UNetConfig",
    },
)
