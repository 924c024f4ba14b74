"""What a network has to offer so that everything else works with it.

A backbone is a configuration (a frozen dataclass with a ``kind``) and a module that it builds:
``F(x, c_noise, conditioning)``. Precond makes a denoiser of any of them. Trainer, sampler, sweep,
magnitudes, FLOPs and files ask the backbone for what they need and know none in particular. Those
of the library are in :data:`BACKBONES`; one of your own is chosen as ``kind: module:Class``.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from edm2lite.kinds import Kinds
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.conditions import Condition
from edm2lite.network.layers import MPConv, MPFourier
from edm2lite.strict_json import from_fields

BACKBONES: Kinds[type[BackboneConfig]] = Kinds(
    "network",
    {
        "unet": "edm2lite.network.unet:UNetConfig",
        "dit": "edm2lite.network.dit:DiTConfig",
        "mp_dit": "edm2lite.network.mp_dit:MPDiTConfig",
        "ladder": "edm2lite.network.ladder.config:LadderConfig",
    },
)
"""Configurations of networks by ``kind``."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(abc.ABC):
    """Shape of a network, and what is known of it before it is built.

    A subclass is a frozen dataclass. All of its fields are written into model files; its class
    attributes and properties tell the library how to use the network.

    Attributes:
        kind: Name in :data:`BACKBONES`, or ``module:Class`` of this class.
        img_resolution: Side of the training images, in pixels of what the network sees.
        img_channels: Number of channels of images or latents.

    Example:
        >>> @dataclass(frozen=True, kw_only=True)
        ... class PixelwiseConfig(BackboneConfig):
        ...     kind: str = "my_module:PixelwiseConfig"
        ...     def build(self):
        ...         return Pixelwise(self)
        >>> class Pixelwise(Backbone):
        ...     def __init__(self, config):
        ...         super().__init__()
        ...         self.config = config
        ...         self.layer = nn.Conv2d(config.img_channels, config.img_channels, 1)
        ...     def forward(self, x, c_noise, conditioning):
        ...         return self.layer(x)
        >>> from edm2lite.diffusion import Precond, PrecondConfig
        >>> config = PixelwiseConfig(img_resolution=8, img_channels=3)
        >>> list(Precond(PrecondConfig(backbone=config)).state_dict())[:2]
        ['backbone.layer.weight', 'backbone.layer.bias']
    """

    kind: str
    img_resolution: int
    img_channels: int

    kinds: ClassVar[Kinds[type[BackboneConfig]]] = BACKBONES

    tensor_prefix: ClassVar[str] = "backbone"
    """First part of the names of its tensors in files."""

    title: ClassVar[str] = ""
    """The network in a few words of Markdown, for model cards: ``"the U-Net of ..."``."""

    groups: ClassVar[Mapping[str, str]] = {}
    """Name -> regular expression, the groups of tensors that ``sweep_ema --groups`` averages over
    lengths of their own; a tensor belongs to the first group whose expression is found in its name.
    """

    @abc.abstractmethod
    def build(self) -> Backbone:
        """The network, with random weights."""

    @property
    def size_multiple(self) -> int:
        """Number that height and width of images have to be multiples of."""
        return 1

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What the network takes besides x and sigma."""
        return ()

    @property
    def condition_names(self) -> tuple[str, ...]:
        """Names of :attr:`conditions`."""
        return tuple(c.name for c in self.conditions)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON can hold them, but for those left at None."""
        unset = {f.name for f in dataclasses.fields(self) if f.default is None}
        values = dataclasses.asdict(self)
        return {k: v for k, v in values.items() if v is not None or k not in unset}


class Backbone(nn.Module, abc.ABC):
    """The network F itself; :class:`BackboneConfig` has an example.

    Attributes:
        config: Configuration that it was built from.

    Example:
        >>> from edm2lite.network.unet import UNetConfig
        >>> net = UNetConfig(img_resolution=64, img_channels=4, model_channels=64).build()
        >>> isinstance(net, Backbone), len(net.blocks())
        (True, 36)
    """

    config: BackboneConfig

    @abc.abstractmethod
    def forward(self, x: Tensor, c_noise: Tensor, conditioning: Conditioning) -> Tensor:
        """F_x of input of unit variance.

        Args:
            x: [N, C, H, W] in the dtype to compute in, H and W multiples of ``size_multiple``.
            c_noise: [N] float32 embedding of the noise level.
            conditioning: Values of the conditions that the configuration declares, checked; those
                that are not required may be missing.

        Returns:
            [N, C, H, W] in the dtype of ``x``, of magnitude 1 once trained.
        """

    def blocks(self) -> list[nn.Module]:
        """Modules that are sharded (FSDP2), compiled and checkpointed each by itself."""
        return []

    def logvar_layers(self, num_channels: int) -> tuple[nn.Module, nn.Module]:
        """What the uncertainty head is made of: features of a number, and a layer from them to 1.

        Args:
            num_channels: Number of features.
        """
        return MPFourier(num_channels), MPConv(num_channels, 1)


def backbone_from_dict(values: Mapping[str, Any], *, trusted: bool = False) -> BackboneConfig:
    """The configuration of a network from the fields in a file.

    Args:
        values: Fields with ``kind``, as :meth:`BackboneConfig.to_dict` returns them.
        trusted: Whether a class ``module:Class`` may be imported, see
            :class:`edm2lite.kinds.Kinds`.

    Raises:
        ValueError: If the kind or a field is unknown, or a value is of another type.
        TypeError: If a field is missing.

    Example:
        >>> backbone_from_dict({"kind": "unet", "img_resolution": 64, "img_channels": 4}).conditions
        ()
    """
    cls: Any = BACKBONES.find_class(str(values["kind"]), BackboneConfig, trusted=trusted)
    config: BackboneConfig = from_fields(cls, values)
    return config
