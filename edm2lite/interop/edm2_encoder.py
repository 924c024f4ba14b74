"""What an official EDM2 file says of its data encoder, as metadata of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping

from edm2lite.encoders import PixelEncoder
from edm2lite.interop.inert_pickle import shown
from edm2lite.interop.torch_records import Instance, as_mapping, plain

_VAE = "stabilityai/sd-vae-ft-mse"
_STATISTICS: dict[str, object] = {  # in force where a file does not say another
    "raw_mean": [5.81, 3.25, 0.12, -2.15],
    "raw_std": [4.17, 4.62, 3.71, 3.28],
    "final_mean": 0.0,
    "final_std": 0.5,
}
_UNUSED = ("batch_size",)  # how it was run, not what it does


def describe_encoder(encoder: Instance, img_channels: int) -> dict[str, str]:
    """Metadata of a model with this encoder.

    It is ``encoder`` for RGB images; for latents ``source_encoder``, a JSON object with class_name,
    vae_name, and raw_mean, raw_std, final_mean and final_std as one number per channel.

    Raises:
        ValueError: It is of another kind, has other settings, or contradicts itself.
    """
    pixels = "RGB" in encoder.class_name
    if not pixels and not encoder.class_name.startswith("StabilityVAE"):
        raise ValueError(
            f"must have an encoder of RGB images or StabilityVAE latents, has one of class"
            f" {shown(encoder.class_name)}"
        )
    given = as_mapping(encoder.attributes.get("_init_kwargs", {}), "settings of encoder")
    known = () if pixels else ("vae_name", *_STATISTICS, *_UNUSED)
    strange = [shown(name) for name in given if name not in known]
    if strange or encoder.attributes.get("_init_args"):
        raise ValueError(
            f"sets {', '.join(strange) or 'values without their names'} of its encoder, which ours"
            " does not understand"
        )
    if pixels:
        return {"encoder": PixelEncoder().to_json()}
    vae_name = plain(given.get("vae_name", _VAE), "vae_name")
    if not isinstance(vae_name, str):
        raise ValueError(f"must have a name as vae_name, has {shown(vae_name)}")
    statistics = {
        name: _per_channel(name, given.get(name, default), img_channels)
        for name, default in _STATISTICS.items()
    }
    _check(encoder.attributes, vae_name, statistics)
    text = json.dumps({"class_name": encoder.class_name, "vae_name": vae_name, **statistics})
    return {"source_encoder": text}


def _check(
    attributes: Mapping[str | int, object], vae_name: str, statistics: Mapping[str, list[float]]
) -> None:
    """Raise ValueError if the encoder's own state is not what its settings give."""
    rows = list(zip(*statistics.values(), strict=True))
    scale = [final_std / std for _, std, _, final_std in rows]
    bias = [final - mean * s for (mean, _, final, _), s in zip(rows, scale, strict=True)]
    for name, expected in (("scale", scale), ("bias", bias)):
        if attributes.get(name) is not None:
            found = _per_channel(name, attributes[name], len(expected))
            # it is kept as float32
            if any(abs(a - b) > 1e-5 * (1 + abs(b)) for a, b in zip(found, expected, strict=True)):
                raise ValueError(f"contradicts itself: {name} of its encoder is {found}")
    own = attributes.get("vae_name")
    if own is not None and own != vae_name:
        raise ValueError(f"contradicts itself: vae_name is {vae_name} and {shown(own)}")


def _per_channel(name: str, value: object, channels: int) -> list[float]:
    """[channels] numbers, from as many or from one for all."""
    numbers = plain(value, f"{name} of the encoder")
    numbers = numbers if isinstance(numbers, list) else [numbers]
    values = [float(n) for n in numbers if isinstance(n, int | float) and -1e9 < n < 1e9]
    if len(values) != len(numbers) or len(values) not in (1, channels):
        raise ValueError(f"must have one number per channel as {name} of its encoder")
    if name.endswith("_std") and min(values) <= 0:
        raise ValueError(f"must have positive numbers as {name} of its encoder")
    return values * (channels // len(values))
