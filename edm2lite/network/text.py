"""What a network is told in words: a pooled vector, and tokens that features attend to.

The pooled vector goes the way of a class, into the embedding that modulates every block. Tokens are
read by cross-attention, :class:`TextAttention`, joined to the main path by angles that are 0 at the
start (:func:`edm2lite.network.operations.mp_join`): until they have learned, the network is the one
without text.

Note [null token]
    A row of zeros says "nothing": a caption that is not told, or padding behind a short one. The
    layers that read text have one more input, which is on in such rows alone: the weights behind it
    are what the network has learned to see where there is no text. Attention sees one such null
    token, always, and no padding; so it has something to attend to whatever the caption.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2lite.network.attention import attend
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.conditions import Condition, Tokens, Vector
from edm2lite.network.kernels.unit_rms import unit_rms
from edm2lite.network.layers import MPConv
from edm2lite.network.operations import mp_join

_RANGES = {"pooled": (0, 65536), "tokens": (0, 65536), "num_tokens": (1, 4096)}


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """What text a network takes, as a text encoder gives it.

    Attributes:
        pooled: Length of the vector of a whole caption; 0 for none.
        tokens: Length of the vector of each token; 0 for none.
        num_tokens: Number of tokens of a caption; shorter ones are padded, longer ones are cut.

    Raises:
        ValueError: If a value is out of range, or both lengths are 0.

    Example:
        >>> TextConfig(pooled=256, tokens=256, num_tokens=16).conditions
        (Vector(name='pooled', length=256), Tokens(num_tokens=16, length=256, name='tokens'))
    """

    pooled: int = 0
    tokens: int = 0
    num_tokens: int = 77

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            if not low <= (value := getattr(self, name)) <= high:
                raise ValueError(f"text.{name} must lie between {low} and {high}, got {value}")
        if not self.pooled and not self.tokens:
            raise ValueError("text.pooled or text.tokens must be above 0, got 0 for both")

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The pooled vector, the tokens, or both."""
        pooled = (Vector("pooled", self.pooled),) if self.pooled else ()
        tokens = (Tokens(self.num_tokens, self.tokens),) if self.tokens else ()
        return (*pooled, *tokens)


@dataclass(frozen=True, kw_only=True)
class UNetText(TextConfig):
    """What text a U-Net takes, and where it attends to it.

    Attributes:
        attn_resolutions: Resolutions whose blocks attend to the tokens, but for those that change
            the resolution.

    Raises:
        ValueError: If there are tokens and no resolutions, or resolutions and no tokens.

    Example:
        >>> UNetText(tokens=768, attn_resolutions=(16, 8)).num_tokens
        77
    """

    attn_resolutions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.tokens) != bool(self.attn_resolutions):
            raise ValueError(
                "text.attn_resolutions must be given with text.tokens, and only then, got"
                f" {list(self.attn_resolutions)} with {self.tokens}"
            )


class Text(NamedTuple):
    """Tokens as the blocks of a network see them.

    Attributes:
        tokens: [N, num_tokens + 1, length + 1], the null token last.
        is_visible: [N, num_tokens + 1], False at padding.
    """

    tokens: Tensor
    is_visible: Tensor


def with_null_flag(x: Tensor) -> Tensor:
    """Vectors with one more number, ``sqrt(length + 1)`` where all others are 0, otherwise 0.

    Args:
        x: [..., length], of magnitude 1 or zero.

    Returns:
        [..., length + 1], of magnitude 1; see Note [null token].

    Example:
        >>> with_null_flag(torch.tensor([[1.0, -1.0, 1.0], [0.0, 0.0, 0.0]]))
        tensor([[ 1., -1.,  1.,  0.],
                [ 0.,  0.,  0.,  2.]])
    """
    is_null = (x == 0).all(-1, keepdim=True)
    return torch.cat([x, is_null.to(x.dtype) * math.sqrt(x.shape[-1] + 1)], -1)


def pooled_of(told: Conditioning, config: TextConfig, emb: Tensor) -> Tensor:
    """The pooled vector of what a network is told, with its null flag.

    Args:
        told: What the network is told; without ``pooled`` the null form.
        config: What text the network takes.
        emb: Embedding, whose dtype and device count.

    Returns:
        [N, length + 1], or [1, length + 1] if the network is told nothing.

    Example:
        >>> pooled_of(Conditioning(), TextConfig(pooled=3), torch.ones(1))
        tensor([[0., 0., 0., 2.]])
    """
    pooled = told.get("pooled")
    return with_null_flag(
        emb.new_zeros(1, config.pooled) if pooled is None else pooled.to(emb.dtype)
    )


def text_of(told: Conditioning, config: TextConfig | None, x: Tensor) -> Text | None:
    """Tokens of what a network is told, cut or padded to ``num_tokens``, and the null token.

    Args:
        told: What the network is told; without ``tokens`` the null form.
        config: What text the network takes.
        x: [N, ...], input of the network, whose number, dtype and device count.

    Returns:
        The text, or None if the network takes no tokens.

    Example:
        >>> told = Conditioning({"tokens": torch.ones(1, 2, 1)})
        >>> text = text_of(told, TextConfig(tokens=1, num_tokens=3), torch.ones(1))
        >>> text.tokens[0].T, text.is_visible
        (tensor([[1.0000, 1.0000, 0.0000, 0.0000],
                [0.0000, 0.0000, 1.4142, 1.4142]]), tensor([[ True,  True, False,  True]]))
    """
    if config is None or not config.tokens:
        return None
    tokens = told.get("tokens")
    if tokens is None:
        tokens = x.new_zeros(len(x), 0, config.tokens)
    tokens = tokens[:, : config.num_tokens]
    tokens = F.pad(tokens, (0, 0, 0, config.num_tokens + 1 - tokens.shape[1]))
    is_last = torch.arange(config.num_tokens + 1, device=x.device) == config.num_tokens
    return Text(with_null_flag(tokens).to(x.dtype), (tokens != 0).any(-1) | is_last)


class TextAttention(nn.Module):
    """Cosine attention from features to tokens of text, joined to the features by angles.

    Queries, keys and values have RMS 1 per head. The mean of values over tokens is smaller the more
    tokens it is of, so the result is brought to RMS 1 again: the join relies on it.

    Args:
        width: Number of channels of the features.
        length: Length of a token.
        num_heads: Number of heads, a divisor of ``width``.

    Example:
        >>> attn, x = TextAttention(32, length=6, num_heads=2), torch.randn(1, 5, 32)
        >>> told = Conditioning({"tokens": torch.randn(1, 3, 6)})
        >>> text = text_of(told, TextConfig(tokens=6, num_tokens=4), x)
        >>> attn(x, text).equal(x)  # the angles are 0 at the start
        True
    """

    def __init__(self, width: int, length: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q = MPConv(width, width)
        self.kv = MPConv(length + 1, 2 * width)
        self.proj = MPConv(width, width)
        self.angles = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, text: Text) -> Tensor:
        """The features with what the text adds to them.

        Args:
            x: [N, P, C] features of magnitude 1.
            text: Result of :func:`text_of`.

        Returns:
            [N, P, C], of magnitude 1.
        """
        q = unit_rms(self.q(x).unflatten(2, (self.num_heads, -1)), dim=3).transpose(1, 2)
        kv = unit_rms(self.kv(text.tokens).unflatten(2, (2, self.num_heads, -1)), dim=4)
        k, v = kv.permute(2, 0, 3, 1, 4)  # each [N, heads, T, C_head]
        y = attend(q, k, v, text.is_visible[:, None, None])
        y = unit_rms(y.transpose(1, 2).flatten(2), dim=2)
        return mp_join(x, self.proj(y), self.angles)


class PixelTextAttention(TextAttention):
    """:class:`TextAttention` from the pixels of features.

    Example:
        >>> attn, x = PixelTextAttention(32, length=6, num_heads=2), torch.randn(1, 32, 4, 4)
        >>> attn(x, text_of(Conditioning(), TextConfig(tokens=6), x)).shape
        torch.Size([1, 32, 4, 4])
    """

    def forward(self, x: Tensor, text: Text) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W], see :meth:`TextAttention.forward`."""
        y: Tensor = super().forward(x.flatten(2).mT, text).mT.unflatten(2, x.shape[2:])
        return y
