"""Precond: a network made into a denoiser D(x; sigma, conditioning), and its file.

``D_x = c_skip x + c_out F(c_in x; c_noise, conditioning)`` (Eqs. 4 to 8; other parametrizations are
in :mod:`edm2lite.diffusion.parametrization`), with the uncertainty head ``logvar(sigma)`` that
weights the training loss (Eq. 21).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import torch
from torch import Tensor, nn

from edm2lite.diffusion import parametrization
from edm2lite.diffusion.format1 import upgraded
from edm2lite.diffusion.parametrization import Embedding, Parametrization, Scalings
from edm2lite.diffusion.state import fill_
from edm2lite.dtypes import Dtype, torch_dtype
from edm2lite.messages import one_line
from edm2lite.network.adapters import merged_state_dict
from edm2lite.network.backbone import Backbone, BackboneConfig, backbone_from_dict
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.kernels.dispatch import is_readable
from edm2lite.network.kernels.prepared import prepared_copy
from edm2lite.network.layers import mp_layers, normalize_weights_
from edm2lite.network.told import check_conditioning
from edm2lite.strict_json import check_fields, parse_object
from edm2lite.tensorfile import MODEL_FORMAT, load_tensors, save_tensors


@dataclass(frozen=True, kw_only=True)
class PrecondConfig:
    """A denoiser: its network and what surrounds it.

    Attributes:
        backbone: Configuration of the network.
        sigma_data: Standard deviation of the training images.
        logvar_channels: Number of Fourier features in the uncertainty head.
        dtype: Floating-point type in which the network computes; parameters and everything around
            it are float32.
        parametrization: What the network predicts, see :mod:`edm2lite.diffusion.parametrization`.
        embedding: Function of sigma that tells the network the noise level; None is the usual
            one of the parametrization. ``angle`` and ``time`` can express pure noise, ``log``
            cannot.

    Raises:
        ValueError: If a value is out of range or unknown.

    Example:
        >>> from edm2lite.network.unet import UNetConfig
        >>> unet = UNetConfig(img_resolution=64, img_channels=4, label_dim=1000)
        >>> config = PrecondConfig(backbone=unet, dtype="bfloat16")
        >>> config.num_parameters()
        280212837
        >>> PrecondConfig.from_json(config.to_json()) == config
        True
    """

    backbone: BackboneConfig
    sigma_data: float = 0.5
    logvar_channels: int = 128
    dtype: Dtype = "float32"
    parametrization: Parametrization = "edm"
    embedding: Embedding | None = None

    def __post_init__(self) -> None:
        if not 0 < self.sigma_data < math.inf:
            raise ValueError(f"sigma_data must be positive, got {self.sigma_data}")
        if not 1 <= (channels := self.logvar_channels) <= 65536:
            raise ValueError(f"logvar_channels must lie between 1 and 65536, got {channels}")
        for name, known in (("parametrization", Parametrization), ("embedding", Embedding)):
            value = getattr(self, name)
            if value not in get_args(known) and (name, value) != ("embedding", None):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {value}")

    def scalings(self, sigma: Tensor) -> Scalings:
        """Coefficients at noise levels, each shaped like ``sigma``."""
        return Scalings.at(sigma, self.sigma_data, self.parametrization, self.embedding)

    def infinite_sigma_error(self) -> str | None:
        """Why the network cannot denoise at sigma = infinity, or None if it can."""
        return parametrization.infinite_sigma_error(self.parametrization, self.embedding)

    def num_parameters(self) -> int:
        """Number of parameters, uncertainty head included; nothing is allocated."""
        with torch.device("meta"):
            return sum(p.numel() for p in Precond(self).parameters())

    def to_json(self) -> str:
        """One line of JSON, for the metadata of a file."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["backbone"] = self.backbone.to_dict()
        return json.dumps(values, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, origin: str = "this", *, trusted: bool = False) -> PrecondConfig:
        """The configuration in the metadata of a model file.

        Args:
            text: Result of :meth:`to_json`, in this version or in 0.1.
            origin: Name of the file in messages.
            trusted: Whether a network ``module:Class`` may be imported.

        Raises:
            ValueError: If there are keys or values that this version does not know.
        """
        try:
            values = upgraded(parse_object(text))
            backbone = backbone_from_dict(values.pop("backbone"), trusted=trusted)
            check_fields(cls, values)
            return cls(backbone=backbone, **values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"the model configuration of {origin} must be one this version can build, but"
                f" {one_line(error, 300)}; the file may be damaged or of a newer version"
            ) from error


class Precond(nn.Module):
    """The denoiser D: a network with its preconditioning and its uncertainty head.

    ``forward`` has no side effects. Weights are normalized at initialization, as after every step
    of training.

    Args:
        config: Configuration of the denoiser.

    Example:
        >>> from edm2lite.network.unet import UNetConfig
        >>> unet = UNetConfig(img_resolution=8, img_channels=1, label_dim=10, model_channels=32,
        ...                   channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,))
        >>> net = Precond(PrecondConfig(backbone=unet))
        >>> net(torch.randn(2, 1, 8, 8), sigma=1.0, conditioning=torch.tensor([3, 7])).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, config: PrecondConfig):
        super().__init__()
        self.config = config
        self.is_prepared = self.is_loaded = False
        # not by add_module, which refuses the name of the property below
        self._modules[config.backbone.tensor_prefix] = config.backbone.build()
        head = self.backbone.logvar_layers(config.logvar_channels)
        self.logvar_fourier, self.logvar_linear = head
        normalize_weights_(self)

    @property
    def backbone(self) -> Backbone:
        """The network F."""
        return cast(Backbone, self._modules[self.config.backbone.tensor_prefix])

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        conditioning: Conditioning | Mapping[str, Tensor] | Tensor | None = None,
    ) -> Tensor:
        """The denoised images D_x.

        Args:
            x: [N, C, H, W] clean images plus noise of standard deviation ``sigma``; H and W
                multiples of the network's ``size_multiple``.
            sigma: [N] or a scalar, > 0; at infinity ``x`` is noise of standard deviation 1.
            conditioning: What the network is told besides x and sigma; a tensor stands for labels:
                [N] class indices, -1 for none, or [N, label_dim] vectors. None tells it nothing.

        Returns:
            [N, C, H, W] float32.

        Raises:
            ValueError: If images, noise levels or conditioning do not fit the network.
        """
        told = Conditioning.of(conditioning)
        self._check_images(x)
        check_conditioning(told, self.config.backbone.conditions, x)
        x = x.float()
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(x.shape[0])
        self._check_levels(sigma)
        s = self.config.scalings(sigma[:, None, None, None])
        dtype = torch_dtype(self.dtype_on(x.device))
        F_x = self.backbone((s.c_in * x).to(dtype), s.c_noise.flatten(), told)
        D_x: Tensor = s.c_skip * x + s.c_out * F_x.float()
        return D_x

    def dtype_on(self, device: torch.device) -> Dtype:
        """Floating-point type in which the network computes on a device: that of ``config``.

        On a CPU, which is many times slower in float16, float32 takes its place for networks that
        were loaded from a file, such as the released ones of EDM2.
        """
        slow = self.is_loaded and device.type == "cpu" and self.config.dtype == "float16"
        return "float32" if slow else self.config.dtype

    def logvar(self, sigma: Tensor) -> Tensor:
        """u(sigma), log of the expected weighted loss per element: [N] -> [N] float32 (Eq. 21)."""
        c_noise = self.config.scalings(sigma).c_noise
        u: Tensor = self.logvar_linear(self.logvar_fourier(c_noise)).squeeze(1)
        return u

    def prepared(
        self,
        *,
        dtype: Dtype | None = None,
        device: torch.device | str | None = None,
        compiled: bool = False,
    ) -> Precond:
        """A copy of the denoiser that samples faster; this one stays as it is.

        Its weights are normalized, scaled and cast once, so that it can neither be trained nor
        saved. It takes the memory of one copy of the weights in ``dtype``; in float32 on a CPU of
        two, the second in the order that the kernels want for the shape of images seen last.

        Args:
            dtype: Floating-point type in which the network computes. [default: :meth:`dtype_on`]
            device: Device of the copy. [default: as here]
            compiled: Whether torch.compile comes next. On a CPU, call the copy once before that,
                without gradients: the graph uses the weights that the call has brought into order.
        """
        place = next(self.parameters()).device if device is None else torch.device(device)
        config = dataclasses.replace(self.config, dtype=dtype or self.dtype_on(place))
        computed = torch_dtype(config.dtype)
        net = prepared_copy(self, mp_layers(self), dtype=computed, device=place, compiled=compiled)
        net.config, net.is_prepared, net.is_loaded = config, True, False
        return net

    def _check_images(self, x: Tensor) -> None:
        channels, multiple = self.config.backbone.img_channels, self.config.backbone.size_multiple
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % multiple or x.shape[3] % multiple:
            raise ValueError(
                f"images must be [N, {channels}, H, W] with H and W multiples of {multiple}, got"
                f" {list(x.shape)}"
            )

    def _check_levels(self, sigma: Tensor) -> None:
        reason = self.config.infinite_sigma_error()
        if reason is not None and is_readable(sigma) and sigma.isinf().any():
            raise ValueError(f"sigma must be finite for this network, got infinity: {reason}")

    def save(self, path: str | Path, extra: Mapping[str, str] | None = None) -> Path:
        """Write weights, adapters merged, and configuration to one safetensors file, atomically.

        Args:
            path: Final name.
            extra: Further metadata strings.

        Raises:
            ValueError: If this is a :meth:`prepared` copy.
        """
        if self.is_prepared:
            raise ValueError(
                "a denoiser must hold its own weights to be saved, a prepared copy does not; save"
                " the denoiser that it was made of"
            )
        metadata = {"format": MODEL_FORMAT, "model": self.config.to_json(), **(extra or {})}
        return save_tensors(Path(path), merged_state_dict(self), metadata)

    @classmethod
    def load(cls, path: str | Path) -> Precond:
        """Read a file written by :meth:`save`, or an EMA snapshot or reconstruction of a denoiser.

        No code in the file is executed.

        Raises:
            FileNotFoundError: If the file does not exist.
            ValueError: If the file is damaged, or holds something other than a denoiser.
        """
        tensors, metadata = load_tensors(Path(path))
        return cls.from_tensors(tensors, metadata, str(path))

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], origin: str
    ) -> Precond:
        """The denoiser with given tensors, in evaluation mode.

        Args:
            tensors: State dict of the denoiser, on any device and of any floating-point type.
            metadata: Metadata of the file, with the configuration under ``model``.
            origin: Name of the file in messages.

        Raises:
            ValueError: If configuration and tensors do not fit, or values are not finite.
        """
        if "model" not in metadata:
            raise ValueError(
                f"{origin} must carry a model configuration in its metadata, found none; weights of"
                " another model can be reconstructed, but only their own code can load them"
            )
        with torch.device("meta"):
            net = cls(PrecondConfig.from_json(metadata["model"], origin))
        fill_(net, tensors, origin)
        net.is_loaded = True
        return net.eval().requires_grad_(False)
