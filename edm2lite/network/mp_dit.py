"""A magnitude-preserving DiT: no layer norms, no biases, every block on the sphere of magnitude 1.

Like the U-Net of config G it normalizes weights, and queries, keys and values (arXiv 2312.02696,
2505.19122). Two ideas replace adaLN-zero. The embedding scales features by ``1 + s``, divided by
the RMS of that. And a branch is joined to the main path by an angle, see
:func:`edm2lite.network.operations.mp_join`, which is 0 at initialization: every block begins as the
identity, and unrelated features of magnitude 1 give features of magnitude 1 at every angle.

Note [pixel norm]. In training branches learn to agree with the main path, and sums of what agrees
grow. Every block therefore divides its tokens by their RMS at its end, as the encoder of config G
does at the beginning of its blocks. Measured without it: docs/transformers.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2lite.network.additions import Hypernetwork, LearnedClasses
from edm2lite.network.attention import attend
from edm2lite.network.backbone import Backbone
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.conditions import ClassLabel
from edm2lite.network.kernels.unit_rms import unit_rms
from edm2lite.network.layers import MPConv, MPFourier
from edm2lite.network.operations import SILU_RMS, mp_join, mp_silu
from edm2lite.network.patches import (
    POSITION_CHANNELS,
    patchify,
    position_channels,
    rotate,
    rotations,
    unpatchify,
)
from edm2lite.network.text import Text, TextAttention, pooled_of, text_of
from edm2lite.network.transformer import TransformerConfig


@dataclass(frozen=True, kw_only=True)
class MPDiTConfig(TransformerConfig):
    """Shape of a magnitude-preserving DiT; attributes are those of :class:`TransformerConfig`.

    ``vectors`` are expected to have magnitude 1.

    Example:
        >>> config = MPDiTConfig.preset("S/2", img_resolution=32, img_channels=4, label_dim=1000)
        >>> with torch.device("meta"):
        ...     net = config.build()
        >>> len(net.blocks())
        12
    """

    title: ClassVar[str] = "a magnitude-preserving diffusion transformer (MP-DiT)"
    kind: Literal["mp_dit"] = "mp_dit"

    def build(self) -> MPDiT:
        """The network, with random weights."""
        return MPDiT(self)


class MPAttention(nn.Module):
    """Cosine attention over tokens, whose positions turn queries and keys.

    Args:
        width: Number of channels.
        num_heads: Number of heads.

    Example:
        >>> attn = MPAttention(32, num_heads=2)
        >>> attn(torch.randn(1, 5, 32), torch.zeros(5, 8)).shape
        torch.Size([1, 5, 32])
    """

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = MPConv(width, 3 * width)
        self.proj = MPConv(width, width)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        """The output for every token.

        Args:
            x: [N, T, C] tokens.
            turns: [T, C_head / 2] angles of their positions.

        Returns:
            [N, T, C], of magnitude 1 where tokens attend to few others.
        """
        parts = unit_rms(self.qkv(x).unflatten(2, (3, self.num_heads, -1)), dim=4)
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # each [N, heads, T, C_head]
        y: Tensor = attend(rotate(q, turns), rotate(k, turns), v)
        y = self.proj(y.transpose(1, 2).flatten(2))
        return y


class MPMLP(nn.Module):
    """Two layers with a magnitude-preserving SiLU between them.

    Args:
        width: Number of channels.
        hidden: Number of channels between the layers.

    Example:
        >>> MPMLP(8, 32)(torch.randn(1, 5, 8)).shape
        torch.Size([1, 5, 8])
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = MPConv(width, hidden), MPConv(hidden, width, in_rms=SILU_RMS)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, C] -> [N, T, C]."""
        y: Tensor = self.fc2(F.silu(self.fc1(x)))
        return y


def scaled(x: Tensor, s: Tensor) -> Tensor:
    """``x (1 + s)``, divided by the RMS of ``1 + s``.

    Args:
        x: [N, T, C].
        s: [N, C] float32.

    Example:
        >>> scaled(torch.ones(1, 1, 2), torch.tensor([[0.0, -1.0]]))
        tensor([[[1.4140, 0.0000]]])
    """
    return x * unit_rms(1 + s, dim=1)[:, None].to(x.dtype)


class MPDiTBlock(nn.Module):
    """A block: attention, then two layers on every token, each scaled and joined by an angle.

    An angle has a value of its own per channel, and one that the embedding adds. Attention to text,
    where there is any, stands between the two.

    Args:
        config: Configuration of the network.

    Example:
        >>> block = MPDiTBlock(MPDiTConfig(img_resolution=8, img_channels=1, width=32, num_heads=2))
        >>> x = unit_rms(torch.randn(1, 16, 32), dim=2)
        >>> y = block(x, torch.randn(1, 32), turns=torch.zeros(16, 8))
        >>> torch.allclose(y, x, atol=1e-3)  # all angles are 0 at initialization
        True
    """

    def __init__(self, config: MPDiTConfig):
        super().__init__()
        width = config.width
        self.attn = MPAttention(width, config.num_heads)
        length = config.text.tokens if config.text else 0
        self.text_attn = TextAttention(width, length, config.num_heads) if length else None
        self.mlp = MPMLP(width, config.mlp_ratio * width)
        self.modulation = MPConv(width, 4 * width)
        self.gains = nn.Parameter(torch.zeros(4))
        self.angles = nn.Parameter(torch.zeros(2, width))

    def forward(self, x: Tensor, emb: Tensor, turns: Tensor, text: Text | None = None) -> Tensor:
        """The output of the block.

        Args:
            x: [N, T, C] tokens.
            emb: [N, C] float32 embedding.
            turns: [T, C_head / 2] angles of the tokens' positions.
            text: Tokens of a text, where the network takes them.

        Returns:
            [N, T, C] in the dtype of ``x``, each token of magnitude 1.
        """
        told = self.modulation(emb).unflatten(1, (4, -1)) * self.gains[:, None]
        scale1, scale2, *_ = told.unbind(1)
        angle1, angle2 = (told[:, 2:] + self.angles).unbind(1)  # each [N, C]
        x = mp_join(x, self.attn(scaled(x, scale1), turns), angle1[:, None])
        if self.text_attn is not None:
            x = self.text_attn(x, text)
        x = mp_join(x, self.mlp(scaled(x, scale2)), angle2[:, None])
        return unit_rms(x, dim=2)  # see Note [pixel norm]


class MPDiT(Backbone):
    """The network F; :class:`edm2lite.diffusion.precond.Precond` makes a denoiser of it.

    Gains are vectors, not scalars, so that FSDP2 can shard every parameter.

    Args:
        config: Configuration of the network.

    Example:
        >>> net = MPDiT(MPDiTConfig(img_resolution=8, img_channels=1, width=32, num_heads=2))
        >>> net(torch.randn(2, 1, 4, 16), torch.zeros(2), Conditioning()).shape  # any size
        torch.Size([2, 1, 4, 16])
    """

    config: MPDiTConfig

    block_class: ClassVar[type[MPDiTBlock]] = MPDiTBlock
    """Class of the blocks; a subclass of the network may have another one."""

    def __init__(self, config: MPDiTConfig):
        super().__init__()
        self.config = config
        width, patch = config.width, config.patch_size**2 * config.img_channels
        self.emb_patch = MPConv(patch + 1 + POSITION_CHANNELS, width)  # ones, in place of biases
        self.emb_fourier = MPFourier(width)
        self.emb_noise = MPConv(width, width)
        self.emb_label = MPConv(config.label_dim + 1, width) if config.label_dim else None
        self.emb_vectors = nn.ModuleDict(
            {name: MPConv(length, width) for name, length in config.vectors.items()}
        )
        pooled = config.text.pooled if config.text else 0
        self.emb_pooled = MPConv(pooled + 1, width) if pooled else None
        learned, ratio = config.learned_classes, config.hypernetwork
        self.emb_learned = LearnedClasses(learned, config.label_dim, width) if learned else None
        self.emb_hyper = Hypernetwork(width, ratio) if ratio else None
        self.layers = nn.ModuleList(self.block_class(config) for _ in range(config.num_blocks))
        self.out_modulation = MPConv(width, width)
        self.out_modulation_gain = nn.Parameter(torch.zeros(1))
        self.out_linear = MPConv(width, patch)
        self.out_gain = nn.Parameter(torch.ones(1))

    def blocks(self) -> list[nn.Module]:
        """The blocks, in their order."""
        return list(self.layers)

    def embed(self, c_noise: Tensor, conditioning: Conditioning) -> Tensor:
        """Embedding of noise level, class, vectors and pooled text, which modulates every block.

        Args:
            c_noise: [N] float32.
            conditioning: What the network is told; what is missing is told in its null form.

        Returns:
            [N, C] float32, of magnitude 1. No class is a class of its own.
        """
        emb = self.emb_noise(self.emb_fourier(c_noise))
        num = 1
        if self.emb_label is not None:
            label = conditioning.get("label")
            if label is None:
                label = torch.full((len(c_noise),), -1, device=c_noise.device)
            vectors = ClassLabel(self.config.num_classes).vectors(label)
            emb, num = emb + self.class_embedding(vectors.to(emb.dtype)), num + 1
        for name, layer in self.emb_vectors.items():
            if name in conditioning:
                emb, num = emb + layer(conditioning[name].to(emb.dtype)), num + 1
        if self.emb_pooled is not None and self.config.text is not None:
            pooled = pooled_of(conditioning, self.config.text, emb)
            emb, num = emb + self.emb_pooled(pooled), num + 1
        emb = mp_silu(emb / math.sqrt(num))
        told: Tensor = emb if self.emb_hyper is None else self.emb_hyper(emb)
        return told

    def class_embedding(self, vectors: Tensor) -> Tensor:
        """[N, num_classes] one-hot vectors, 0 for no class -> [N, C], of magnitude 1."""
        if self.emb_learned is None:
            return self.known_classes(vectors)
        emb: Tensor = self.emb_learned(vectors, self.known_classes)
        return emb

    def known_classes(self, vectors: Tensor) -> Tensor:
        """[N, label_dim] one-hot vectors, 0 for no class -> [N, C], without learned classes."""
        assert self.emb_label is not None
        is_null = (vectors == 0).all(1, keepdim=True).to(vectors.dtype)
        one_hot = torch.cat([vectors, is_null], 1) * math.sqrt(self.config.label_dim + 1)
        emb: Tensor = self.emb_label(one_hot)
        return emb

    def forward(self, x: Tensor, c_noise: Tensor, conditioning: Conditioning) -> Tensor:
        """F_x of input of unit variance, see :meth:`Backbone.forward`."""
        config, patch = self.config, self.config.patch_size
        emb = self.embed(c_noise, conditioning)
        height, width = x.shape[2] // patch, x.shape[3] // patch
        turns = rotations(height, width, config.side, config.width // config.num_heads, x.device)
        where = position_channels(height, width, config.side, x.device).to(x.dtype)
        tokens = patchify(x, patch)
        ones = torch.ones_like(tokens[..., :1])
        tokens = self.emb_patch(torch.cat([tokens, ones, where.expand(len(x), -1, -1)], 2))
        tokens = unit_rms(tokens, dim=2)
        text = text_of(conditioning, config.text, x)
        told = (emb, turns) if text is None else (emb, turns, text)
        for block in self.layers:
            tokens = block(tokens, *told)
        tokens = scaled(tokens, self.out_modulation(emb, gain=self.out_modulation_gain))
        return unpatchify(self.out_linear(tokens, gain=self.out_gain), patch, height, width)
