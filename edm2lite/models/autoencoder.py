"""Autoencoders of diffusers (AutoencoderKL), from a folder or the Hub: latents and back."""

from __future__ import annotations

import copy
import os
import threading
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from edm2lite.dtypes import Dtype, torch_dtype
from edm2lite.extras import require
from edm2lite.messages import one_line

DECODE_BATCH = 8
"""Number of latents that are decoded at a time: the activations of one image of 512x512 pixels take
about 1 GiB."""
MOVED = "EDM2LITE_VAE"
"""Environment variable: the place of an autoencoder whose folder was on another machine."""

_LOADING = threading.Lock()


@dataclass(frozen=True)
class Autoencoder:
    """A loaded autoencoder, in evaluation mode and float32.

    Attributes:
        name: Folder or Hub name.
        model: Module of diffusers.
        digest: xxh3-64 of its weights, hexadecimal.
    """

    name: str
    model: Any = field(repr=False)
    digest: str

    @property
    def factor(self) -> int:
        """Pixels per latent along each side."""
        return 1 << (len(self.model.config.block_out_channels) - 1)

    @property
    def channels(self) -> int:
        """Channels C of a latent."""
        return int(self.model.config.latent_channels)

    def check_digest(self, expected: str | None) -> None:
        """Compare with the weights that made the latents.

        Args:
            expected: Digest of those weights; None for any.

        Raises:
            ValueError: If these are other weights.
        """
        if expected is not None and expected != self.digest:
            raise ValueError(
                f"the autoencoder {self.name} must be the one that made the latents (digest"
                f" {expected}), its weights have digest {self.digest}; name the right one"
            )

    @torch.no_grad()
    def encode(self, images: Tensor, input_range: str) -> Tensor:
        """The latent distributions of images.

        Args:
            images: uint8 [N, 1 or 3, H, W].
            input_range: Range of the pixel values that the autoencoder takes: ``-1..1`` or
                ``0..1``.

        Returns:
            [N, 2C, h, w] float32, means and then standard deviations.
        """
        x = images.float() / 255
        if input_range == "-1..1":
            x = x * 2 - 1
        x = x.expand(-1, int(self.model.config.in_channels), -1, -1)  # gray: equal channels
        latent = self.model.encode(x).latent_dist
        return torch.cat([latent.mean, latent.std], dim=1)

    @torch.no_grad()
    def decode(
        self, latents: Tensor, input_range: str, dtype: Dtype = "float32"
    ) -> tuple[Tensor, Tensor]:
        """Images of latents.

        Args:
            latents: [N, C, h, w] float32.
            input_range: Range of the pixel values that the autoencoder gives. Values of ``-1..1``
                are rounded to the nearest pixel value; those of ``0..1`` are rounded down, as in
                the EDM2 paper's code.
            dtype: Floating-point type in which the autoencoder computes; other than in float32,
                with a copy of its weights, channels last.

        Returns:
            uint8 [N, 1 or 3, H, W], and whether all values were finite, a bool of no dimensions.
        """
        parts = torch.split(latents, DECODE_BATCH)
        if dtype == "float32":
            images = torch.cat([self.model.decode(part).sample for part in parts])
        else:
            decoder = _decoder(self, dtype)
            images = torch.cat([decoder(part.to(torch_dtype(dtype))).float() for part in parts])
        is_finite = images.isfinite().all()
        if input_range == "-1..1":
            images = (images * 127.5 + 128).clamp(0, 255)
        else:
            images = images.clamp(0, 1) * 255
        return images.to(torch.uint8), is_finite


def load_autoencoder(name: str, device: str, *, download: bool = True) -> Autoencoder:
    """Load an autoencoder; only safetensors weights are read.

    In place of a folder that is not on this machine, the one in the environment variable
    EDM2LITE_VAE is taken. The last two autoencoders stay loaded, for all threads.

    Args:
        name: Folder of an autoencoder or of a pipeline that contains one, or name on the Hub.
        device: Device that computes.
        download: Whether it may come from the Hub. If not, as where a file gives the name, it must
            be a folder or in the cache of the Hub, unless the variable repeats the name.

    Raises:
        ValueError: If there is no such autoencoder, or it is damaged.
        ImportError: If diffusers is not installed.
    """
    place = _located(name)
    with _LOADING:
        is_hub = not Path(place).is_dir()
        return _load(place, device, is_hub and (download or place == os.environ.get(MOVED)))


def _located(name: str) -> str:
    """The name, or the content of the variable if it is a folder that is not on this machine."""
    if not Path(name).is_absolute() or Path(name).is_dir():
        return name
    if MOVED not in os.environ:
        raise ValueError(
            f"the autoencoder must be in the folder {name}, which is not there; set {MOVED} to the"
            " folder or Hub name where it is now"
        )
    return os.environ[MOVED]


@lru_cache(maxsize=2)
def _load(name: str, device: str, download: bool) -> Autoencoder:
    require("diffusers")
    from diffusers import AutoencoderKL
    from safetensors import SafetensorError

    kind: Any = AutoencoderKL  # diffusers annotates only a part of it
    folder, options = Path(name), {}
    if (folder / "vae" / "config.json").is_file():
        options["subfolder"] = "vae"
    elif folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(
            f"{name} must hold an autoencoder saved by diffusers, it has no config.json; give the"
            " folder that save_pretrained wrote, or a Hub name"
        )
    try:
        model = kind.from_pretrained(
            name,
            **options,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            local_files_only=not download,
            torch_dtype=torch.float32,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = one_line(error, 200)
        if not download and not folder.is_dir():
            raise ValueError(
                f"the autoencoder {name} must be in the cache of the Hub, since a file names it and"
                f" cannot have it downloaded; set {MOVED}={name} to download it ({reason})"
            ) from error
        raise ValueError(
            f"the autoencoder {name} must be a folder or Hub name of a diffusers AutoencoderKL with"
            f" safetensors weights; loading it failed: {reason}"
        ) from error
    return Autoencoder(name, model.to(device).eval().requires_grad_(False), _digest(model))


def _decoder(autoencoder: Autoencoder, dtype: Dtype) -> nn.Module:
    with _LOADING:
        return _cast_decoder(autoencoder, dtype)


@lru_cache(maxsize=2)
def _cast_decoder(autoencoder: Autoencoder, dtype: Dtype) -> nn.Module:
    """What makes images of latents, cast and channels last; the autoencoder stays as it is."""
    model = autoencoder.model
    parts = [copy.deepcopy(m) for m in (model.post_quant_conv, model.decoder) if m is not None]
    layout: Any = {"memory_format": torch.channels_last}  # not in torch's annotations of `to`
    return nn.Sequential(*parts).to(dtype=torch_dtype(dtype), **layout)


def _digest(model: torch.nn.Module) -> str:
    state = xxhash.xxh3_64()
    for key, value in sorted(model.state_dict().items()):
        state.update(key.encode())
        state.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()
