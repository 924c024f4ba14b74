"""LadderConfig: which of the configs A to F a network is, and its shape; config G is ``unet``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from edm2lite.network.conditions import ClassLabel, Condition
from edm2lite.network.ladder.layers import num_groups
from edm2lite.network.ladder.networks import RungA, RungC, RungD, RungE, RungF
from edm2lite.network.wiring import UNetShape

Rung = Literal["a", "b", "c", "d", "e", "f"]

NETWORKS: dict[Rung, type[RungA]] = {
    "a": RungA, "b": RungA, "c": RungC, "d": RungD, "e": RungE, "f": RungF,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LadderConfig(UNetShape):
    """One of the configs A to F of arXiv 2312.02696, of any size.

    A and B are one network: B attends at fewer resolutions, and is trained otherwise.

    Attributes:
        rung: The letter of the config, in lower case.

    Raises:
        ValueError: If sizes, widths and levels do not fit each other, or a value is out of range.

    Example:
        >>> from edm2lite.diffusion import PrecondConfig
        >>> net = LadderConfig(rung="c", img_resolution=64, img_channels=4, label_dim=1000)
        >>> PrecondConfig(backbone=net).num_parameters()
        277816640
    """

    kind: Literal["ladder"] = "ladder"
    rung: Rung

    title: ClassVar[str] = (
        "a network of the ladder of EDM2 ([arXiv 2312.02696](https://arxiv.org/abs/2312.02696))"
    )
    tensor_prefix: ClassVar[str] = "unet"  # as in config G, so that tensors can be compared
    groups: ClassVar[Mapping[str, str]] = {
        "embedding": r"unet\.emb_|emb_linear",
        "attention": r"\.attn_",
        "encoder": r"unet\.enc\.",
        "decoder": r"unet\.dec\.",
        "output": r"unet\.out_",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rung not in NETWORKS:
            raise ValueError(
                f"rung must be one of {', '.join(NETWORKS)}, got {self.rung}; config G is kind unet"
            )
        if self.rung != "f":
            self._check_groups()

    def _check_groups(self) -> None:
        for place in [*self.encoder(), *self.decoder()]:
            for width in (place.in_channels, place.out_channels):
                if width < 4 or width % num_groups(width):
                    raise ValueError(
                        f"every width must be a multiple of 4, and of 32 from 128 on, for groups of"
                        f" channels; {place.name} has {width}; change model_channels or"
                        " channel_mult"
                    )

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """A class label or nothing."""
        return (ClassLabel(self.label_dim),) if self.label_dim else ()

    def build(self) -> RungA:
        """The network, with random weights."""
        return NETWORKS[self.rung](self)
