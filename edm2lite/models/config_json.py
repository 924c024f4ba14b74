"""``config.json`` beside exported weights: what the network is, and how it was trained."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edm2lite.strict_json import parse

if TYPE_CHECKING:
    from edm2lite.models.model_card import Background

_OBJECTS = ("model", "encoder", "text_encoder", "class_names")
_NUMBERS = ("sigma_rel", "gamma", "nimg", "predicted_error")
_TEXTS = ("decay", "run", "digest")


def config_json(metadata: Mapping[str, str], background: Background | None = None) -> str:
    """The content of ``config.json``.

    Everything that is needed to load the model is in the model file; this is for people, and for
    the Hub, which counts downloads by it. Files are named without their folders, and the vectors of
    learned words are left out.

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
    content: dict[str, Any] = {
        "library_name": "edm2lite",
        **{key: parse(metadata[key]) for key in _OBJECTS if key in metadata},
        **{key: parse(metadata[key]) for key in _NUMBERS if _is_number(metadata.get(key))},
        **{key: metadata[key] for key in _TEXTS if key in metadata},
    }
    content |= {} if training is None else {"training": training}
    for key in {"encoder", "text_encoder", "training"} & {*content}:
        content[key] = without_folders(content[key])
    content.get("text_encoder", {}).pop("word_vectors", None)
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def without_folders(value: Any) -> Any:
    """The same values, in which files are named without the folders of this machine.

    Args:
        value: Value of JSON.

    Example:
        >>> without_folders({"source": "/home/me/clip", "data": ["digits", "openai/clip"]})
        {'source': 'clip', 'data': ['digits', 'openai/clip']}
    """
    if isinstance(value, dict):
        return {key: without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(inner) for inner in value]
    if isinstance(value, str) and re.match(r"([/~\\]|[A-Za-z]:[/\\])", value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


def _is_number(text: str | None) -> bool:
    return text is not None and re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", text) is not None
