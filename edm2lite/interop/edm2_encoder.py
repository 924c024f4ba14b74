"""The data encoder of an official EDM2 file, in the form used here."""

from __future__ import annotations

import re
from collections.abc import Mapping

from edm2lite.interop.inert_pickle import shown
from edm2lite.interop.plain_records import plain
from edm2lite.interop.torch_records import Instance, arguments
from edm2lite.models.encoders import EDM2_LATENTS, Encoder, LatentEncoder, PixelEncoder

_STATISTICS: dict[str, object] = {  # defaults, where a file does not record others
    "raw_mean": list(EDM2_LATENTS.mean),
    "raw_std": list(EDM2_LATENTS.std),
    "final_mean": 0.0,
    "final_std": 0.5,
}
_ARGUMENTS = ("vae_name", *_STATISTICS, "batch_size")  # in their order; the last changes nothing


def encoder_of(instance: Instance, img_channels: int) -> Encoder:
    """The encoder that a pickled encoder describes.

    It is either that of RGB images in -1..1, or that of latents,
    ``(latent - raw_mean) / raw_std * final_std + final_mean``.

    Args:
        instance: The pickled encoder.
        img_channels: Number of channels of the encoded images.

    Raises:
        ValueError: If the encoder is of another kind, has unknown settings, or contradicts itself.
    """
    pixels = "RGB" in instance.class_name
    if not pixels and not instance.class_name.startswith("StabilityVAE"):
        raise ValueError(
            f"must have an encoder of RGB images or StabilityVAE latents, has one of class"
            f" {shown(instance.class_name)}"
        )
    known = () if pixels else _ARGUMENTS
    settings = arguments(instance, known, "encoder")
    unknown = [shown(name) for name in settings if name not in known]
    if unknown:
        raise ValueError(f"sets {', '.join(unknown)} of its encoder, which is not supported here")
    if pixels:
        return PixelEncoder()
    vae = plain(settings.get("vae_name", EDM2_LATENTS.vae), "vae_name")
    if not isinstance(vae, str) or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", vae):
        raise ValueError(f"must have a name on the Hub as vae_name, has {shown(vae)}")
    recorded = instance.attributes.get("vae_name")
    if recorded is not None and recorded != vae:
        raise ValueError(
            f"contradicts itself: vae_name is {vae}, but {shown(recorded)} in its encoder"
        )
    statistics = {
        name: _per_channel(name, settings.get(name, default), img_channels)
        for name, default in _STATISTICS.items()
    }
    _check(instance.attributes, statistics)
    rows = list(zip(*statistics.values(), strict=True))
    sigma_data = statistics["final_std"][0]
    return LatentEncoder(
        vae=vae,
        mean=tuple(mean - final * std / final_std for mean, std, final, final_std in rows),
        std=tuple(std * (sigma_data / final_std) for _, std, _, final_std in rows),
        sigma_data=sigma_data,
        input_range=EDM2_LATENTS.input_range,
    )


def _check(attributes: Mapping[str | int, object], statistics: Mapping[str, list[float]]) -> None:
    """Raise ValueError if scale and bias of the encoder do not follow from its settings."""
    rows = list(zip(*statistics.values(), strict=True))
    scale = [final_std / std for _, std, _, final_std in rows]
    bias = [final - mean * s for (mean, _, final, _), s in zip(rows, scale, strict=True)]
    for name, expected in (("scale", scale), ("bias", bias)):
        if attributes.get(name) is not None:
            found = _per_channel(name, attributes[name], len(expected))
            # the encoder stores float32
            if any(abs(a - b) > 1e-5 * (1 + abs(b)) for a, b in zip(found, expected, strict=True)):
                raise ValueError(f"contradicts itself: {name} of its encoder is {found}")


def _per_channel(name: str, value: object, channels: int) -> list[float]:
    """The numbers [channels] of a setting, which has one for each channel or one for all."""
    numbers = plain(value, f"{name} of the encoder")
    numbers = numbers if isinstance(numbers, list) else [numbers]
    values = [float(n) for n in numbers if isinstance(n, int | float) and -1e9 < n < 1e9]
    if len(values) != len(numbers) or len(values) not in (1, channels):
        raise ValueError(f"must have one number per channel as {name} of its encoder")
    if name.endswith("_std") and min(values) <= 0:
        raise ValueError(f"must have positive numbers as {name} of its encoder")
    return values * (channels // len(values))
