"""The layers of DiT: plain linear layers whose weights are float32, in the dtype of their input."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2lite.network.attention import attend
from edm2lite.network.conditions import ClassLabel
from edm2lite.network.text import Text

NUM_FREQUENCIES = 128
"""Number of sines, and of cosines, that the noise level is embedded in."""


class Linear(nn.Linear):
    """A linear layer with weights in float32 that computes in the dtype of its input.

    Example:
        >>> Linear(4, 2)(torch.ones(1, 4, dtype=torch.bfloat16)).dtype
        torch.bfloat16
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., C_in] -> [..., C_out] in the dtype of ``x``."""
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class PatchEmbedding(nn.Module):
    """A linear map from patches to tokens, stored as a convolution.

    Args:
        in_channels: Number of channels of images.
        width: Number of channels of a token.
        patch_size: Side of a patch.

    Example:
        >>> PatchEmbedding(3, 64, patch_size=2)(torch.randn(1, 3, 8, 4)).shape
        torch.Size([1, 8, 64])
    """

    def __init__(self, in_channels: int, width: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, T, width], in the dtype of ``x``."""
        weight, bias = self.proj.weight.to(x.dtype), self.proj.bias
        assert bias is not None
        y = F.conv2d(x, weight, bias.to(x.dtype), stride=self.proj.stride)
        return y.flatten(2).transpose(1, 2)


class TimeEmbedding(nn.Module):
    """Sines and cosines of the noise level, and a network of two layers.

    Args:
        width: Number of channels.
        time_scale: Factor of c_noise.
        freq_shift: s in the frequencies ``10000**(-i / (128 - s))``.

    Example:
        >>> embedding = TimeEmbedding(32, time_scale=1.0, freq_shift=0.0)
        >>> embedding.waves(torch.zeros(1))[0, [0, -1]]
        tensor([1., 0.])
    """

    def __init__(self, width: int, time_scale: float, freq_shift: float):
        super().__init__()
        self.time_scale, self.freq_shift = time_scale, freq_shift
        self.mlp = nn.Sequential(
            Linear(2 * NUM_FREQUENCIES, width), nn.SiLU(), Linear(width, width)
        )

    def waves(self, c_noise: Tensor) -> Tensor:
        """[N] -> [N, 256] float32: cosines, then sines, the fastest first."""
        i = torch.arange(NUM_FREQUENCIES, dtype=torch.float32, device=c_noise.device)
        # in this order, whose float32 rounding is that of the released code at large angles
        freqs = torch.exp(-math.log(10000) * i / (NUM_FREQUENCIES - self.freq_shift))
        angles = (c_noise.float() * self.time_scale).outer(freqs)
        return torch.cat([angles.cos(), angles.sin()], 1)

    def forward(self, c_noise: Tensor) -> Tensor:
        """[N] -> [N, width] in the dtype of ``c_noise``."""
        embedded: Tensor = self.mlp(self.waves(c_noise).to(c_noise.dtype))
        return embedded


class LabelEmbedding(nn.Module):
    """A row per class, and one for no class.

    Args:
        num_classes: Number of classes, or length of vectors in their place.
        width: Number of channels.

    Example:
        >>> embedding = LabelEmbedding(3, 4)
        >>> index, vector = torch.tensor([2, -1]), torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
        >>> embedding(index).equal(embedding(vector))
        True
    """

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.num_classes = num_classes
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, label: Tensor) -> Tensor:
        """[N] indices with -1 for none, or vectors [N, num_classes], 0 for none -> [N, width]."""
        if label.ndim == 1 and not label.is_floating_point():
            rows: Tensor = self.embedding_table(torch.where(label < 0, self.num_classes, label))
            return rows
        vectors = ClassLabel(self.num_classes).vectors(label)
        is_null = (vectors == 0).all(1, keepdim=True).float()
        weight = self.embedding_table.weight
        return torch.cat([vectors, is_null], 1).to(weight.dtype) @ weight


class Attention(nn.Module):
    """Self-attention over tokens.

    Args:
        width: Number of channels.
        num_heads: Number of heads.

    Example:
        >>> Attention(32, num_heads=2)(torch.randn(1, 5, 32)).shape
        torch.Size([1, 5, 32])
    """

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, C] -> [N, T, C]."""
        parts = self.qkv(x).unflatten(2, (3, self.num_heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # each [N, heads, T, C_head]
        y: Tensor = self.proj(attend(q, k, v).transpose(1, 2).flatten(2))
        return y


class TextAttention(nn.Module):
    """Attention from tokens of an image to those of a text, as in PixArt (arXiv 2310.00426).

    Args:
        width: Number of channels.
        length: Length of a token of the text.
        num_heads: Number of heads.

    Example:
        >>> from edm2lite.network.conditioning import Conditioning
        >>> from edm2lite.network.text import TextConfig, text_of
        >>> x = torch.randn(1, 5, 32)
        >>> text = text_of(Conditioning(), TextConfig(tokens=6), x)
        >>> TextAttention(32, length=6, num_heads=2)(x, text).shape
        torch.Size([1, 5, 32])
    """

    def __init__(self, width: int, length: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q, self.kv = Linear(width, width), Linear(length + 1, 2 * width)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor, text: Text) -> Tensor:
        """[N, T, C] -> [N, T, C]."""
        q = self.q(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        kv = self.kv(text.tokens).unflatten(2, (2, self.num_heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4)  # each [N, heads, T, C_head]
        y = attend(q, k, v, text.is_visible[:, None, None])
        projected: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return projected


class MLP(nn.Module):
    """Two layers with a GELU, in its tanh form, between them.

    Args:
        width: Number of channels.
        hidden: Number of channels between the layers.

    Example:
        >>> MLP(8, 32)(torch.randn(1, 5, 8)).shape
        torch.Size([1, 5, 8])
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = Linear(width, hidden), Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, C] -> [N, T, C]."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return y


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``(1 + scale) norm(x) + shift``, with a layer norm that has no weights.

    Args:
        x: [N, T, C].
        shift: [N, C].
        scale: [N, C].

    Example:
        >>> zero = torch.zeros(1, 2)
        >>> modulated_norm(torch.tensor([[[1.0, 5.0]]]), shift=zero + 3, scale=zero)
        tensor([[[2., 4.]]])
    """
    x = F.layer_norm(x, x.shape[-1:], eps=1e-6)
    return torch.addcmul(shift[:, None].to(x.dtype), x, 1 + scale[:, None].to(x.dtype))
