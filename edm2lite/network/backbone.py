"""What a network has to offer so that everything else works with it.

A backbone is a configuration (a frozen dataclass with a ``kind``) and a module that it builds:
``F(x, c_noise, conditioning)``. Precond makes a denoiser of any of them, and trainer, sampler,
sweep, magnitudes, FLOPs and files ask the backbone instead of knowing one. Ours are in
:data:`BACKBONES`; one of yours is chosen as ``kind: module:Class``.
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

BACKBONES: Kinds[type[BackboneConfig]] = Kinds(
    "network", {"unet": "edm2lite.network.unet:UNetConfig"}
)
"""Configurations of networks by ``kind``."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(abc.ABC):
    """Shape of a network, and what is known of it before it is built.

    Attributes:
        kind: Name in :data:`BACKBONES`, or ``module:Class`` of this class.
        img_resolution: Side of the training images, in what the network works on.
        img_channels: Channels of images or latents.
    """

    kind: str
    img_resolution: int
    img_channels: int

    kinds: ClassVar[Kinds[type[BackboneConfig]]] = BACKBONES

    tensor_prefix: ClassVar[str] = "backbone"
    """What the names of its tensors begin with in files."""

    groups: ClassVar[Mapping[str, str]] = {}
    """Name -> regular expression: groups of tensors that ``sweep_ema --groups`` gives EMA lengths
    of their own; a tensor belongs to the first that is found in its name."""

    @abc.abstractmethod
    def build(self) -> Backbone:
        """The network, with random weights."""

    @property
    def size_multiple(self) -> int:
        """What height and width of images have to be multiples of."""
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
        """All fields, as JSON can hold them."""
        return dataclasses.asdict(self)


class Backbone(nn.Module, abc.ABC):
    """The network F itself."""

    config: BackboneConfig

    @abc.abstractmethod
    def forward(self, x: Tensor, c_noise: Tensor, conditioning: Conditioning) -> Tensor:
        """F_x of input of unit variance.

        Args:
            x: [N, C, H, W] in the dtype to compute in; H and W multiples of ``size_multiple``.
            c_noise: [N] float32, what the network is told of the noise level.
            conditioning: The conditions that it declared, checked; those that are not required may
                be missing.

        Returns:
            [N, C, H, W] in the dtype of ``x``, of magnitude 1 once trained.
        """

    def blocks(self) -> list[nn.Module]:
        """Parts that are sharded (FSDP2), compiled and checkpointed one by one; none by default."""
        return []


def backbone_from_dict(values: Mapping[str, Any], *, trusted: bool = False) -> BackboneConfig:
    """The configuration of a network from the fields in a file.

    Args:
        values: Fields with ``kind``, as :meth:`BackboneConfig.to_dict` gives them.
        trusted: Whether a class of the user's may be imported, see :class:`edm2lite.kinds.Kinds`.

    Raises:
        ValueError: If the kind is not known.
        TypeError: If a field is missing or not known.
    """
    cls: Any = BACKBONES.find(values["kind"], trusted=trusted)
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    config: BackboneConfig = cls(**fields)
    return config
