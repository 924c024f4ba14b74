"""The shape of a U-Net: widths, depths, where it attends, and the shares of its sums."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Shape of a U-Net.

    Attributes:
        img_resolution: Side of the training images; fixes where attention sits.
        img_channels: Channels of images or latents.
        label_dim: Number of classes, or length of a conditioning vector; 0 for none.
        cond_channels: Channels of a conditioning image that is given beside the noisy one; 0 for
            none.
        model_channels: Base width C; level i has ``C * channel_mult[i]`` channels.
        channel_mult: One factor per resolution, from full resolution downwards.
        num_blocks: Residual blocks per resolution in the encoder (one more in the decoder).
        attn_resolutions: Resolutions whose blocks attend.
        head_channels: Channels of an attention head.
        dropout: Probability within the residual branch.
        label_balance, concat_balance, res_balance, attn_balance: Share t of the class embedding, of
            the skip connection, and of the two residual branches.
        clip_act: Activations are clipped to +-clip_act at the end of a block (for fp16).
    """

    img_resolution: int
    img_channels: int
    label_dim: int = 0
    cond_channels: int = 0
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (16, 8)
    head_channels: int = 64
    dropout: float = 0.0
    label_balance: float = 0.5
    concat_balance: float = 0.5
    res_balance: float = 0.3
    attn_balance: float = 0.3
    clip_act: float = 256.0

    def __post_init__(self) -> None:
        factor = 2 ** (len(self.channel_mult) - 1)
        if self.img_resolution % factor:
            raise ValueError(
                f"img_resolution must be a multiple of {factor} with {len(self.channel_mult)}"
                f" entries in channel_mult, got {self.img_resolution}"
            )
        widths = [self.model_channels * m for m in self.channel_mult]
        attending = [widths[-1]] + [  # the first decoder block always attends
            width
            for i, width in enumerate(widths)
            if self.img_resolution >> i in self.attn_resolutions
        ]
        for width in attending:
            if width % self.head_channels:
                raise ValueError(
                    f"a level that attends must have a multiple of head_channels ="
                    f" {self.head_channels} channels, got {width}; change model_channels,"
                    " channel_mult or head_channels"
                )
        if min(self.label_dim, self.cond_channels) < 0:
            raise ValueError("label_dim and cond_channels must be at least 0 (0 for none)")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")

    @property
    def emb_channels(self) -> int:
        """Width of the embedding: that of the widest level."""
        return self.model_channels * max(self.channel_mult)
