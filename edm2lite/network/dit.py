"""The diffusion transformer DiT (arXiv 2212.09748), adaLN-zero, as it was published.

Its tensors have the names of the released ones, but for ``layers``, which are ``blocks`` there. How
those weights were trained, and those of SiT (arXiv 2401.08740), is in :mod:`edm2lite.interop.dit`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from edm2lite.network.additions import Hypernetwork, LearnedClasses
from edm2lite.network.backbone import Backbone
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.conditions import ClassLabel
from edm2lite.network.dit_layers import (
    MLP,
    NUM_FREQUENCIES,
    Attention,
    LabelEmbedding,
    Linear,
    PatchEmbedding,
    TextAttention,
    TimeEmbedding,
    modulated_norm,
)
from edm2lite.network.patches import sine_positions, unpatchify
from edm2lite.network.text import Text, pooled_of, text_of
from edm2lite.network.transformer import TransformerConfig


@dataclass(frozen=True, kw_only=True)
class DiTConfig(TransformerConfig):
    """Shape of a DiT; further attributes are those of :class:`TransformerConfig`.

    Attributes:
        time_scale: Factor of c_noise in the sines and cosines of the noise level, whose fastest
            has the period 2 pi. The released DiT is told steps of 0 to 999, at factor 1.
        freq_shift: s in their frequencies ``10000**(-i / (128 - s))``: 0 as published, 1
            in diffusers.
        predicts_variance: Whether the last layer has a second output per channel, the place of the
            posterior's variance between its bounds; see :meth:`DiT.with_variance`.

    Example:
        >>> config = DiTConfig.preset("XL/2", img_resolution=32, img_channels=4, label_dim=1000,
        ...                           predicts_variance=True)
        >>> with torch.device("meta"):
        ...     net = config.build()
        >>> sum(p.numel() for p in net.parameters())
        674834720
    """

    title: ClassVar[str] = (
        "the diffusion transformer DiT ([arXiv 2212.09748](https://arxiv.org/abs/2212.09748))"
    )
    kind: Literal["dit"] = "dit"
    time_scale: float = 1000.0
    freq_shift: float = 0.0
    predicts_variance: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.time_scale < math.inf:
            raise ValueError(f"time_scale must be positive, got {self.time_scale}")
        if not 0 <= self.freq_shift < NUM_FREQUENCIES:
            raise ValueError(f"freq_shift must lie in [0, 128), got {self.freq_shift}")

    def build(self) -> DiT:
        """The network, with random weights."""
        return DiT(self)


class DiTBlock(nn.Module):
    """A block: attention, then two layers on every token, each modulated and gated.

    Attention to text, where there is any, stands between the two, and begins silent.

    Args:
        config: Configuration of the network.

    Example:
        >>> block = DiTBlock(DiTConfig(img_resolution=8, img_channels=1, width=32, num_heads=2))
        >>> block(torch.randn(1, 16, 32), torch.randn(1, 32)).shape
        torch.Size([1, 16, 32])
    """

    def __init__(self, config: DiTConfig):
        super().__init__()
        width = config.width
        self.attn = Attention(width, config.num_heads)
        length = config.text.tokens if config.text else 0
        self.text_attn = TextAttention(width, length, config.num_heads) if length else None
        self.mlp = MLP(width, config.mlp_ratio * width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 6 * width))

    def forward(self, x: Tensor, emb: Tensor, text: Text | None = None) -> Tensor:
        """The output of the block.

        Args:
            x: [N, T, C] tokens.
            emb: [N, C] float32 embedding.
            text: Tokens of a text, where the network takes them.

        Returns:
            [N, T, C] in the dtype of ``x``.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(emb).chunk(6, dim=1)
        y = self.attn(modulated_norm(x, shift1, scale1))
        x = torch.addcmul(x, gate1[:, None].to(x.dtype), y)
        if self.text_attn is not None:
            x = x + self.text_attn(x, text)
        y = self.mlp(modulated_norm(x, shift2, scale2))
        return torch.addcmul(x, gate2[:, None].to(x.dtype), y)


class FinalLayer(nn.Module):
    """From tokens to the values of their patches.

    Args:
        config: Configuration of the network.

    Example:
        >>> layer = FinalLayer(DiTConfig(img_resolution=8, img_channels=3, width=32, num_heads=2))
        >>> layer(torch.randn(1, 16, 32), torch.randn(1, 32)).shape
        torch.Size([1, 16, 12])
    """

    def __init__(self, config: DiTConfig):
        super().__init__()
        outputs = config.img_channels * (1 + config.predicts_variance)
        self.linear = Linear(config.width, config.patch_size**2 * outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(config.width, 2 * config.width))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[N, T, C] and [N, C] -> [N, T, outputs], values in the order (row, column, channel)."""
        shift, scale = self.adaLN_modulation(emb).chunk(2, dim=1)
        y: Tensor = self.linear(modulated_norm(x, shift, scale))
        return y


class DiT(Backbone):
    """The network F; :class:`edm2lite.diffusion.precond.Precond` makes a denoiser of it.

    Args:
        config: Configuration of the network.

    Example:
        >>> net = DiT(DiTConfig(img_resolution=8, img_channels=1, width=32, num_heads=2))
        >>> net(torch.randn(2, 1, 4, 16), torch.zeros(2), Conditioning()).shape  # any size
        torch.Size([2, 1, 4, 16])
    """

    config: DiTConfig

    block_class: ClassVar[type[DiTBlock]] = DiTBlock
    """Class of the blocks; a subclass of the network may have another one."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.x_embedder = PatchEmbedding(config.img_channels, width, config.patch_size)
        self.t_embedder = TimeEmbedding(width, config.time_scale, config.freq_shift)
        self.y_embedder = LabelEmbedding(config.label_dim, width) if config.label_dim else None
        self.vector_embedders = nn.ModuleDict(
            {name: nn.Linear(n, width, bias=False) for name, n in config.vectors.items()}
        )
        pooled = config.text.pooled if config.text else 0
        self.pooled_embedder = nn.Linear(pooled + 1, width, bias=False) if pooled else None
        learned, ratio = config.learned_classes, config.hypernetwork
        self.emb_learned = (
            LearnedClasses(learned, config.label_dim, width, is_unit=False) if learned else None
        )
        self.emb_hyper = Hypernetwork(width, ratio) if ratio else None
        self.layers = nn.ModuleList(self.block_class(config) for _ in range(config.num_blocks))
        self.final_layer = FinalLayer(config)
        self.apply(_initialize_)
        for block in self.layers:
            _zero_(block.get_submodule("adaLN_modulation.1"))
            if config.text and config.text.tokens:
                _zero_(block.get_submodule("text_attn.proj"))
        _zero_(self.final_layer.adaLN_modulation[1])
        _zero_(self.final_layer.linear)

    def blocks(self) -> list[nn.Module]:
        """The blocks, in their order."""
        return list(self.layers)

    def embed(self, c_noise: Tensor, conditioning: Conditioning) -> Tensor:
        """Embedding of noise level, class, vectors and pooled text, which modulates every block.

        Args:
            c_noise: [N] float32.
            conditioning: What the network is told; what is missing is told in its null form.

        Returns:
            [N, C] float32.
        """
        emb: Tensor = self.t_embedder(c_noise)
        if self.y_embedder is not None:
            label = conditioning.get("label")
            if label is None:
                label = torch.full((len(c_noise),), -1, device=c_noise.device)
            emb = emb + self.class_embedding(label)
        for name, layer in self.vector_embedders.items():
            if name in conditioning:
                emb = emb + layer(conditioning[name].to(emb.dtype))
        if self.pooled_embedder is not None and self.config.text is not None:
            emb = emb + self.pooled_embedder(pooled_of(conditioning, self.config.text, emb))
        told: Tensor = emb if self.emb_hyper is None else self.emb_hyper(emb)
        return told

    def class_embedding(self, label: Tensor) -> Tensor:
        """[N] class indices, -1 for none, or vectors [N, num_classes] -> [N, C]."""
        if self.emb_learned is None:
            return self.known_classes(label)
        vectors = ClassLabel(self.config.num_classes).vectors(label)
        emb: Tensor = self.emb_learned(vectors, self.known_classes)
        return emb

    def known_classes(self, label: Tensor) -> Tensor:
        """[N] class indices, or vectors [N, label_dim] -> [N, C], without learned classes."""
        assert self.y_embedder is not None
        emb: Tensor = self.y_embedder(label)
        return emb

    def forward(self, x: Tensor, c_noise: Tensor, conditioning: Conditioning) -> Tensor:
        """F_x of input of unit variance, see :meth:`Backbone.forward`; zero at initialization."""
        return self.with_variance(x, c_noise, conditioning)[:, : self.config.img_channels]

    def with_variance(self, x: Tensor, c_noise: Tensor, conditioning: Conditioning) -> Tensor:
        """F_x and, where the network predicts the variance, its outputs v: [N, C or 2C, H, W].

        The logarithm of the variance of a DDPM step is ``(1 + v) / 2`` of the way from its lower
        bound to its upper one (arXiv 2102.09672).

        Args:
            x: [N, C, H, W] input of the network.
            c_noise: [N] embedding of the noise level.
            conditioning: What the network is told.
        """
        emb = self.embed(c_noise, conditioning)
        patch = self.config.patch_size
        height, width = x.shape[2] // patch, x.shape[3] // patch
        where = sine_positions(height, width, self.config.side, self.config.width, x.device)
        tokens = self.x_embedder(x) + where.to(x.dtype)
        text = text_of(conditioning, self.config.text, x)
        told = (emb,) if text is None else (emb, text)
        for block in self.layers:
            tokens = block(tokens, *told)
        values = self.final_layer(tokens, emb)  # [N, T, (row, column, channel)]
        values = values.unflatten(2, (patch**2, -1)).transpose(2, 3).flatten(2)
        return unpatchify(values, patch, height, width)


def _initialize_(module: nn.Module) -> None:
    """Random weights as in the paper."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, PatchEmbedding):
        nn.init.xavier_uniform_(module.proj.weight.data.flatten(1))
        assert module.proj.bias is not None
        nn.init.zeros_(module.proj.bias)
    elif isinstance(module, TimeEmbedding):
        for weight in (module.mlp.get_parameter("0.weight"), module.mlp.get_parameter("2.weight")):
            nn.init.normal_(weight, std=0.02)
    elif isinstance(module, LabelEmbedding):
        nn.init.normal_(module.embedding_table.weight, std=0.02)


def _zero_(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
