"""Shape and wiring that every rung of the ladder shares: the U-Net without what is in its blocks.

An encoder of residual blocks, each of whose outputs is kept; a decoder that takes them back in
reverse order (arXiv 2312.02696, Figs. 16 to 22). :class:`Place` says where a block stands and which
widths it meets; what the block computes is up to the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edm2lite.network.backbone import BackboneConfig

_RANGES: dict[str, tuple[float, float]] = {
    "img_resolution": (1, 65536), "img_channels": (1, 65536), "model_channels": (1, 65536),
    "head_channels": (1, 65536), "num_blocks": (1, 1024), "label_dim": (0, 2**31),
}  # fmt: skip
_MAX_BLOCKS = 512


@dataclass(frozen=True)
class Place:
    """Where a residual block stands in a U-Net.

    Attributes:
        name: Name of the block, such as ``"8x8_block0"``.
        in_channels: Number of channels of its input, skip connection included.
        out_channels: Number of channels of its output.
        resample: What happens to the resolution at its entry.
        attention: Whether the block attends to its own pixels.
        takes_skip: Whether its input is joined with a skip connection of the encoder.
        text: Whether the block attends to the tokens of a text.
    """

    name: str
    in_channels: int
    out_channels: int
    resample: Literal["keep", "up", "down"] = "keep"
    attention: bool = False
    takes_skip: bool = False
    text: bool = False


@dataclass(frozen=True, kw_only=True)
class UNetShape(BackboneConfig):
    """Widths and depths of a U-Net, and where it attends.

    Attributes:
        label_dim: Number of classes, or length of a conditioning vector; 0 for none.
        model_channels: Base width C; level i has ``C * channel_mult[i]`` channels.
        channel_mult: One factor per resolution, from full resolution downwards.
        num_blocks: Number of residual blocks per resolution in the encoder; the decoder has one
            more.
        attn_resolutions: Resolutions whose blocks have attention.
        head_channels: Number of channels of an attention head.
        dropout: Probability of dropout within the residual branches.

    Raises:
        ValueError: If sizes, widths and levels do not fit each other, or a value is out of range.
    """

    label_dim: int = 0
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (16, 8)
    head_channels: int = 64
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES)
        levels = len(self.channel_mult)
        if not 1 <= levels <= 16 or not all(1 <= m <= 1024 for m in self.channel_mult):
            raise ValueError(
                "channel_mult must hold a factor from 1 to 1024 for each of 1 to 16 levels, got"
                f" {list(self.channel_mult[:16])}"
            )
        if levels * (2 * self.num_blocks + 1) > _MAX_BLOCKS:
            raise ValueError(
                f"num_blocks must give at most {_MAX_BLOCKS} blocks in all, got {self.num_blocks}"
                f" for each of {levels} levels"
            )
        if self.img_resolution % self.size_multiple:
            raise ValueError(
                f"img_resolution must be a multiple of {self.size_multiple} with"
                f" {len(self.channel_mult)} entries in channel_mult, got {self.img_resolution}"
            )
        for place in [*self.encoder(), *self.decoder()]:
            if (place.attention or place.text) and place.out_channels % self.head_channels:
                raise ValueError(
                    f"a level that attends must have a multiple of head_channels ="
                    f" {self.head_channels} channels, got {place.out_channels}; change"
                    " model_channels, channel_mult or head_channels"
                )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")

    @property
    def emb_channels(self) -> int:
        """Length of the embedding, the width of the widest level."""
        return self.model_channels * max(self.channel_mult)

    @property
    def size_multiple(self) -> int:
        """2 to the number of times that the resolution is halved."""
        return 1 << (len(self.channel_mult) - 1)

    @property
    def text_resolutions(self) -> tuple[int, ...]:
        """Resolutions whose blocks attend to the tokens of a text."""
        return ()

    def encoder(self) -> list[Place]:
        """The blocks after the first convolution, from full resolution downwards."""
        places, channels = [], self.model_channels
        for level, multiple in enumerate(self.channel_mult):
            res, width = self.img_resolution >> level, self.model_channels * multiple
            if level > 0:
                places.append(Place(f"{res}x{res}_down", channels, channels, "down"))
            for i in range(self.num_blocks):
                places.append(
                    Place(
                        f"{res}x{res}_block{i}",
                        channels,
                        width,
                        attention=res in self.attn_resolutions,
                        text=res in self.text_resolutions,
                    )
                )
                channels = width
        return places

    def decoder(self) -> list[Place]:
        """The blocks from the lowest resolution upwards, which use up the skips from the end."""
        skips = [self.model_channels, *(place.out_channels for place in self.encoder())]
        places, channels = [], skips[-1]
        for level, multiple in reversed(list(enumerate(self.channel_mult))):
            res, width = self.img_resolution >> level, self.model_channels * multiple
            if level == len(self.channel_mult) - 1:
                text = res in self.text_resolutions
                places.append(
                    Place(f"{res}x{res}_in0", channels, channels, attention=True, text=text)
                )
                places.append(Place(f"{res}x{res}_in1", channels, channels))
            else:
                places.append(Place(f"{res}x{res}_up", channels, channels, "up"))
            for i in range(self.num_blocks + 1):
                places.append(
                    Place(
                        f"{res}x{res}_block{i}",
                        channels + skips.pop(),
                        width,
                        attention=res in self.attn_resolutions,
                        takes_skip=True,
                        text=res in self.text_resolutions,
                    )
                )
                channels = width
        return places


def check_ranges(config: BackboneConfig, ranges: dict[str, tuple[float, float]]) -> None:
    """Raise ValueError if a field of a configuration is outside of its closed range."""
    for name, (low, high) in ranges.items():
        if not low <= getattr(config, name) <= high:
            raise ValueError(
                f"{name} must lie between {low} and {high}, got {getattr(config, name)}"
            )
