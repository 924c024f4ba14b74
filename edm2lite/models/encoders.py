"""Encoders between what a data set stores and what the denoiser sees, of deviation sigma_data.

An encoder is a description: a few numbers and, for latents, the name of an autoencoder. It travels
as JSON in every model file, so that a model can always turn its output into images.
"""

from __future__ import annotations

import abc
import dataclasses
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from edm2lite.descriptions import built, described
from edm2lite.dtypes import Dtype
from edm2lite.kinds import Kinds

if TYPE_CHECKING:
    from edm2lite.models.autoencoder import Autoencoder

ENCODERS: Kinds[type[Encoder]] = Kinds(
    "encoder",
    {
        "pixels": "edm2lite.models.encoders:PixelEncoder",
        "latents": "edm2lite.models.encoders:LatentEncoder",
        "patches": "edm2lite.models.patches:PatchEncoder",
    },
)
"""Encoders by ``kind``."""


@dataclass(frozen=True, kw_only=True)
class Encoder(abc.ABC):
    """Description of the way between stored images and what the network sees.

    Attributes:
        kind: Name in :data:`ENCODERS`, or ``module:Class`` of an encoder of yours.

    Example:
        >>> @dataclass(frozen=True, kw_only=True)
        ... class Halves(Encoder):
        ...     kind: str = "my_module:Halves"
        ...     def encode(self, raw, noise=None):
        ...         return raw.float() / 2
        ...     def decode(self, x):
        ...         return (2 * x).to(torch.uint8)
        >>> Halves().to_json()
        '{"kind":"my_module:Halves"}'
    """

    kind: str

    kinds: ClassVar[Kinds[type[Encoder]]] = ENCODERS

    is_random: ClassVar[bool] = False
    """Whether the data set stores a distribution for each image, from which :meth:`encode` draws
    with the noise that it is given."""

    has_network: ClassVar[bool] = False
    """Whether a network decodes, in a floating-point type that can be chosen."""

    def shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C, H, W) of what the network sees of an image; encoders that change it say how.

        Args:
            image_shape: (C, H, W) of the image, or of its latents.

        Raises:
            ValueError: If images of that shape cannot be encoded.
        """
        return image_shape

    @abc.abstractmethod
    def encode(self, raw: Tensor, noise: Tensor | None = None) -> Tensor:
        """What the network sees, [N, C, H, W] float32.

        Args:
            raw: [N, ...] images as the data set stores them.
            noise: [N, C, H, W] standard normal; without it, encoders that draw take the mean.
        """

    @abc.abstractmethod
    def decode(self, x: Tensor) -> Tensor:
        """Images of what the network sees, uint8 on the device of ``x``.

        Args:
            x: [N, C, H, W] floating-point values in the space of the denoiser.
        """

    def decode_in(self, x: Tensor, dtype: Dtype) -> tuple[Tensor, Tensor]:
        """Images as of :meth:`decode` by a network in ``dtype``, and whether they are finite."""
        return self.decode(x), x.isfinite().all()

    def encode_images(self, images: Tensor) -> Tensor:
        """What the network sees of images, [N, C, H, W] float32, without chance.

        Args:
            images: uint8 [N, C, H, W] of pixels, whatever a data set for the encoder stores.
        """
        return self.encode(images)

    def image_channels(self, channels: int) -> int:
        """Number of channels of images, of which the network sees ``channels``."""
        return channels

    def to_json(self) -> str:
        """The description that travels in every model file."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))


@dataclass(frozen=True, kw_only=True)
class PixelEncoder(Encoder):
    """Pixels, shifted and scaled: ``x = (image - shift) / scale``.

    The defaults map 0..255 to -1..1. For a data set of other contrast, shift by its mean and scale
    by its standard deviation / sigma_data.

    Attributes:
        kind: ``pixels``.
        shift: Pixel value that becomes 0.
        scale: Difference of pixel values that becomes 1.

    Example:
        >>> encoder = PixelEncoder()
        >>> x = encoder.encode(torch.tensor([0, 255], dtype=torch.uint8))
        >>> x, encoder.decode(x)
        (tensor([-1.,  1.]), tensor([  0, 255], dtype=torch.uint8))
    """

    kind: Literal["pixels"] = "pixels"
    shift: float = 127.5
    scale: float = 127.5

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"encoder.scale must be positive, got {self.scale}")

    def encode(self, raw: Tensor, noise: Tensor | None = None) -> Tensor:
        """uint8 [N, C, H, W] -> float32. Pixels are exact, ``noise`` is not used."""
        return (raw.float() - self.shift) / self.scale

    def decode(self, x: Tensor) -> Tensor:
        """Float [N, C, H, W] -> uint8, rounded to nearest and clipped."""
        return (x.float() * self.scale + self.shift + 0.5).clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True, kw_only=True)
class LatentEncoder(Encoder):
    """Latents of an autoencoder: ``x = (latent - mean) / std * sigma_data``, per channel.

    The data set holds mean and standard deviation of the latent distribution of each image, and a
    new latent is drawn every time an image is used. The autoencoder is loaded when something is
    first decoded. A configuration may leave out any field that the data set states.

    Attributes:
        kind: ``latents``.
        vae: Folder or Hub name of a diffusers AutoencoderKL.
        vae_digest: Digest of its weights, checked before decoding; None for any weights.
        mean: Mean of each latent channel over the data set.
        std: Standard deviation of each latent channel over the data set.
        sigma_data: Standard deviation of what the denoiser sees.
        input_range: Range of the pixel values that the autoencoder takes and gives.

    Example:
        >>> encoder = LatentEncoder(mean=(1.0,), std=(4.0,))
        >>> mean_and_std = torch.tensor([5.0, 2.0]).reshape(1, 2, 1, 1)
        >>> encoder.encode(mean_and_std).item(), encoder.encode(mean_and_std, torch.ones(1)).item()
        (0.5, 0.75)
    """

    is_random: ClassVar[bool] = True
    has_network: ClassVar[bool] = True

    kind: Literal["latents"] = "latents"
    vae: str | None = None
    vae_digest: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    sigma_data: float = 0.5
    input_range: Literal["-1..1", "0..1"] | None = None

    def __post_init__(self) -> None:
        if not self.sigma_data > 0:
            raise ValueError(f"encoder.sigma_data must be positive, got {self.sigma_data}")
        if len(self.mean) != len(self.std):
            raise ValueError(
                "encoder.mean and encoder.std must have one value per latent channel each, got"
                f" {len(self.mean)} and {len(self.std)}"
            )
        if not all(value > 0 for value in self.std):
            raise ValueError(f"encoder.std must be positive, got {list(self.std)}")

    def completed(self, other: LatentEncoder) -> LatentEncoder:
        """This description, with the fields that it leaves out taken from ``other``."""
        own_vae = self.vae is not None and self.vae != other.vae
        return LatentEncoder(
            vae=self.vae or other.vae, input_range=self.input_range or other.input_range,
            vae_digest=self.vae_digest or (None if own_vae else other.vae_digest),
            mean=self.mean or other.mean, std=self.std or other.std, sigma_data=self.sigma_data,
        )  # fmt: skip

    def encode(self, raw: Tensor, noise: Tensor | None = None) -> Tensor:
        """A draw from each stored distribution, standardized: [N, C, H, W] float32.

        Args:
            raw: [N, 2C, H, W], C channels of means, then C of standard deviations.
            noise: [N, C, H, W] standard normal; without it the means are taken.
        """
        mean, std = raw.float().chunk(2, dim=1)
        drawn = mean if noise is None else mean + std * noise
        return (drawn - _channels(self.mean, raw.device)) * (
            self.sigma_data / _channels(self.std, raw.device)
        )

    def encode_images(self, images: Tensor) -> Tensor:
        """The means of the latents of images, standardized; raises as :meth:`decode` does."""
        autoencoder, input_range = self._loaded(images.device)
        return self.encode(autoencoder.encode(images, input_range))

    def image_channels(self, channels: int) -> int:
        """Number of channels of images: that of the autoencoder, mostly 3."""
        autoencoder, _ = self._loaded(torch.device("cpu"))
        return int(autoencoder.model.config.in_channels)

    def decode(self, x: Tensor) -> Tensor:
        """Images of latents, uint8 on the device of ``x``, by the autoencoder in float32.

        It is downloaded only if it is that of the EDM2 paper, or EDM2LITE_VAE has its name.

        Raises:
            ValueError: If a field is missing, or the autoencoder cannot be loaded or has other
                weights.
            ImportError: If diffusers is not installed.
        """
        return self.decode_in(x, "float32")[0]

    def decode_in(self, x: Tensor, dtype: Dtype) -> tuple[Tensor, Tensor]:
        """As :meth:`decode`, with an autoencoder that computes in ``dtype``; the same errors."""
        autoencoder, input_range = self._loaded(x.device)
        mean, std = _channels(self.mean, x.device), _channels(self.std, x.device)
        latents = x.float() * (std / self.sigma_data) + mean
        return autoencoder.decode(latents, input_range, dtype)

    def _loaded(self, device: torch.device) -> tuple[Autoencoder, str]:
        """The autoencoder that made the latents, and the range of its pixel values."""
        from edm2lite.models.autoencoder import load_autoencoder

        if self.vae is None or self.input_range is None or not self.mean:
            raise ValueError(
                "an encoder must name its vae, input_range, mean and std to see or make images"
            )
        known = self.vae == EDM2_LATENTS.vae  # any other name may be that of a file
        autoencoder = load_autoencoder(self.vae, str(device), download=known)
        autoencoder.check_digest(self.vae_digest)
        return autoencoder, self.input_range


EDM2_LATENTS = LatentEncoder(
    vae="stabilityai/sd-vae-ft-mse", input_range="0..1",
    mean=(5.81, 3.25, 0.12, -2.15), std=(4.17, 4.62, 3.71, 3.28),
)  # fmt: skip
"""Encoder of the EDM2 paper: it gives images of 0..1 to an autoencoder made for -1..1."""


def encoder_from_json(text: str, origin: str = "this") -> Encoder:
    """The encoder that a model file describes.

    Args:
        text: Description, as :meth:`Encoder.to_json` gives it.
        origin: Name of the file in messages.

    Raises:
        ValueError: If this version does not know the kind or a setting.

    Example:
        >>> encoder_from_json('{"kind": "pixels", "scale": 100}')
        PixelEncoder(kind='pixels', shift=127.5, scale=100)
    """
    return described(text, ENCODERS, Encoder, "encoder", origin)


def encoder_from_dict(values: dict[str, Any]) -> Encoder:
    """The encoder of a parsed description; see :func:`encoder_from_json`.

    Example:
        >>> encoder_from_dict({"kind": "latents", "mean": [0.5], "std": [2.0]}).std
        (2.0,)
    """
    return built(values, ENCODERS, Encoder, "encoder")


@lru_cache(maxsize=8)
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A value per channel as [C, 1, 1], copied to a device once."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]
