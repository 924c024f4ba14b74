"""``config.json`` beside exported weights: what the network is, and how it was trained."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from edm2lite.models.model_card import Background
from edm2lite.strict_json import parse

_OBJECTS = ("model", "encoder", "text_encoder", "class_names")
_NUMBERS = ("sigma_rel", "gamma", "nimg", "predicted_error")
_TEXTS = ("decay", "run", "digest")


def config_json(metadata: Mapping[str, str], background: Background | None = None) -> str:
    """The content of ``config.json``.

    Everything that is needed to load the model is in the model file; this is for people, and for
    the Hub, which counts downloads by it.

    Args:
        metadata: Metadata of the model file.
        background: What is known besides.

    Example:
        >>> from edm2lite.diffusion.precond import PrecondConfig
        >>> from edm2lite.network.unet import UNetConfig
        >>> unet = UNetConfig(img_resolution=8, img_channels=1, model_channels=8, channel_mult=(1,),
        ...                   num_blocks=1, attn_resolutions=(), head_channels=8)
        >>> metadata = {"model": PrecondConfig(backbone=unet).to_json(), "sigma_rel": "0.13"}
        >>> json.loads(config_json(metadata))["sigma_rel"]
        0.13
    """
    training = None if background is None else background.training
    content = {
        "library_name": "edm2lite",
        **{key: parse(metadata[key]) for key in _OBJECTS if key in metadata},
        **{key: parse(metadata[key]) for key in _NUMBERS if _is_number(metadata.get(key))},
        **{key: metadata[key] for key in _TEXTS if key in metadata},
    }
    content |= {} if training is None else {"training": training}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _is_number(text: str | None) -> bool:
    return text is not None and re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", text) is not None
