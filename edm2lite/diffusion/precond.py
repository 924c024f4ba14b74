"""Precond: a U-Net made into a denoiser D(x; sigma, labels), and its file.

``D_x = c_skip x + c_out F(c_in x; c_noise, labels)`` (Eqs. 4 to 8; other parametrisations are in
:mod:`edm2lite.diffusion.parametrization`), with the uncertainty head ``logvar(sigma)`` that weighs
the training loss (Eq. 21).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from edm2lite.diffusion import parametrization
from edm2lite.diffusion.parametrization import Embedding, Parametrization, Scalings
from edm2lite.network.layers import MPConv, MPFourier, normalize_weights_
from edm2lite.network.unet import UNet, UNetConfig
from edm2lite.tensorfile import load_tensors, save_tensors

FORMAT = "edm2lite.model/1"


@dataclass(frozen=True, kw_only=True)
class PrecondConfig:
    """A denoiser: its U-Net and what surrounds it.

    Attributes:
        unet: Shape of the network.
        sigma_data: Standard deviation of the training images.
        logvar_channels: Fourier features of the uncertainty head.
        dtype: In which the U-Net computes; parameters and everything around it are float32.
        parametrization: What the U-Net predicts, see :mod:`edm2lite.diffusion.parametrization`.
        embedding: How it is told of the noise level; None is the parametrisation's own. ``angle``
            and ``time`` can say that there is nothing but noise, ``log`` cannot.
    """

    unet: UNetConfig
    sigma_data: float = 0.5
    logvar_channels: int = 128
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    parametrization: Parametrization = "edm"
    embedding: Embedding | None = None

    def __post_init__(self) -> None:
        if not 0 < self.sigma_data < math.inf:
            raise ValueError(f"sigma_data must be positive, got {self.sigma_data}")
        for name, known in (("parametrization", Parametrization), ("embedding", Embedding)):
            value = getattr(self, name)
            if value not in get_args(known) and (name, value) != ("embedding", None):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {value}")

    def scalings(self, sigma: Tensor) -> Scalings:
        """Coefficients at noise levels, each shaped like ``sigma``."""
        return Scalings.at(sigma, self.sigma_data, self.parametrization, self.embedding)

    def why_not_infinity(self) -> str | None:
        """Why the network cannot denoise at sigma = infinity, or None if it can."""
        return parametrization.why_not_infinity(self.parametrization, self.embedding)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> PrecondConfig:
        """The configuration in the metadata of a model file.

        Raises:
            ValueError: Keys or values that this version does not know.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            unet: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in values.pop("unet").items()
            }
            return cls(unet=UNetConfig(**unet), **values)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"model configuration must be one this version can build, found {error}; it may be"
                " of a newer version"
            ) from error


class Precond(nn.Module):
    """The denoiser. ``forward`` has no side effects; its weights start on their sphere."""

    def __init__(self, config: PrecondConfig):
        super().__init__()
        self.config = config
        self.unet = UNet(config.unet)
        self.logvar_fourier = MPFourier(config.logvar_channels)
        self.logvar_linear = MPConv(config.logvar_channels, 1)
        normalize_weights_(self)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        labels: Tensor | None = None,
        cond: Tensor | None = None,
    ) -> Tensor:
        """The denoised images D_x.

        Args:
            x: [N, C, H, W] clean images plus noise of standard deviation ``sigma``; H and W
                multiples of 2**(levels - 1).
            sigma: [N] or a scalar, > 0; at infinity ``x`` is noise of standard deviation 1.
            labels: [N] class indices, [N, label_dim] conditioning vectors, or None. The index -1
                is no class, the zero vector; None is that for all images. Vectors have L2 norm 1,
                as the one-hot vector of a class, or 0 for no condition.
            cond: [N, cond_channels, H, W] of unit variance, noise-free, e.g. an image to upscale.

        Returns:
            [N, C, H, W] float32.

        Raises:
            ValueError: Images, noise levels, labels or a conditioning image that do not fit the
                network.
        """
        self._check_images(x, cond)
        x = x.float()
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(x.shape[0])
        self._check_levels(sigma)
        s = self.config.scalings(sigma[:, None, None, None])
        dtype = getattr(torch, self.config.dtype)
        F_x = self.unet(
            (s.c_in * x).to(dtype),
            s.c_noise.flatten(),
            self._label_vectors(labels),
            None if cond is None else cond.to(dtype),
        )
        return s.c_skip * x + s.c_out * F_x.float()

    def logvar(self, sigma: Tensor) -> Tensor:
        """u(sigma), log of the expected weighted loss per element: [N] -> [N] float32 (Eq. 21)."""
        c_noise = self.config.scalings(sigma).c_noise
        return self.logvar_linear(self.logvar_fourier(c_noise)).squeeze(1)

    def prepare_for_sampling(self, *, for_graph: bool = False) -> Precond:
        """Normalise, scale and cast every weight once; for evaluation only. Returns the network.

        In float32 on a CPU one more copy of the weights is kept, in the order that the kernels want
        for the shape of images seen last.

        Args:
            for_graph: torch.compile comes next. On a CPU, call the network once before, without
                gradients, so that the graph finds the copy.
        """
        self.eval().requires_grad_(False)
        for module in self.modules():
            if isinstance(module, MPConv):
                linear = module.weight.ndim == 2  # the embedding computes in float32
                dtype = torch.float32 if linear else getattr(torch, self.config.dtype)
                module.prepare(dtype, for_graph)
        return self

    def _check_images(self, x: Tensor, cond: Tensor | None) -> None:
        unet = self.config.unet
        factor = 2 ** (len(unet.channel_mult) - 1)
        if (
            x.ndim != 4
            or x.shape[1] != unet.img_channels
            or x.shape[2] % factor
            or x.shape[3] % factor
        ):
            raise ValueError(
                f"images must be [N, {unet.img_channels}, H, W] with H and W multiples of {factor},"
                f" got {list(x.shape)}"
            )
        shape = None if cond is None else cond.shape
        wanted = (len(x), unet.cond_channels, *x.shape[2:]) if unet.cond_channels else None
        if shape != wanted:
            raise ValueError(
                f"cond must be {wanted and list(wanted)} for this network and these images, got"
                f" {shape and list(shape)}"
            )

    def _check_levels(self, sigma: Tensor) -> None:
        reason = self.config.why_not_infinity()
        if reason is not None and _is_readable(sigma) and sigma.isinf().any():
            raise ValueError(f"sigma must be finite for this network, got infinity: {reason}")

    def _label_vectors(self, labels: Tensor | None) -> Tensor | None:
        label_dim = self.config.unet.label_dim
        if labels is None:
            return None
        if not label_dim:
            raise ValueError("labels must be None for an unconditional network, got a tensor")
        if labels.ndim == 1 and not labels.is_floating_point():
            if _is_readable(labels):
                _check_classes(labels, label_dim)
            classes = torch.arange(label_dim, device=labels.device)
            return (labels[:, None] == classes).float()
        if labels.ndim != 2 or labels.shape[1] != label_dim:
            raise ValueError(
                f"labels must be [N] class indices or [N, {label_dim}] vectors, got"
                f" {list(labels.shape)} {labels.dtype}"
            )
        return labels.float()

    def save(self, path: str | Path, extra: Mapping[str, str] | None = None) -> Path:
        """Write weights and configuration to one safetensors file, atomically.

        Args:
            path: Final name.
            extra: Further metadata strings.
        """
        metadata = {"format": FORMAT, "model": self.config.to_json(), **(extra or {})}
        return save_tensors(Path(path), self.state_dict(), metadata)

    @classmethod
    def load(cls, path: str | Path) -> Precond:
        """Read a file written by :meth:`save`, an EMA snapshot or a reconstruction of our model.

        No code in the file is executed.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is damaged, or does not hold one of our models.
        """
        tensors, metadata = load_tensors(Path(path))
        return cls.from_tensors(tensors, metadata, str(path))

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], origin: str
    ) -> Precond:
        """Build from a state dict and the metadata that came with it; evaluation mode."""
        if "model" not in metadata:
            raise ValueError(
                f"{origin} must carry a model configuration in its metadata, found none; weights of"
                " another model can be reconstructed, but only their own code can load them"
            )
        with torch.device("meta"):
            net = cls.__new__(cls)
            cls.__init__(net, PrecondConfig.from_json(metadata["model"]))
        own = net.state_dict()
        floats = {  # gains are scalars in the released networks, vectors of length 1 here
            k: v.float().reshape(own[k].shape if v.ndim == 0 and k in own else v.shape)
            for k, v in tensors.items()
        }
        try:
            net.load_state_dict(floats, assign=True)
        except RuntimeError as error:
            first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise ValueError(
                f"{origin} does not fit its own model configuration: {first}"
            ) from error
        bad = [name for name, value in net.state_dict().items() if not torch.isfinite(value).all()]
        if bad:
            raise ValueError(
                f"{origin} must hold finite weights, {bad[0]} does not; use another file"
            )
        return net.eval().requires_grad_(False)


def _is_readable(values: Tensor) -> bool:
    """Whether a look at the values is free: it would stall a GPU, and break a graph or a vmap."""
    return (
        values.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(values)
    )


def _check_classes(labels: Tensor, label_dim: int) -> None:
    low, high = (int(labels.min()), int(labels.max())) if labels.numel() else (0, 0)
    if not -1 <= low <= high < label_dim:
        raise ValueError(
            f"class indices must be 0 to {label_dim - 1}, or -1 for none, got {low} to {high}"
        )
