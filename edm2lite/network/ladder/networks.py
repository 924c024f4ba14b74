"""The networks of configs A to F: embedding, first and last layer, and the blocks between them."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2lite.network.backbone import Backbone
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.conditions import ClassLabel
from edm2lite.network.ladder.blocks import BlockA, BlockC, BlockD, BlockE, BlockF
from edm2lite.network.ladder.layers import Fourier, PlainConv, Sinusoids
from edm2lite.network.wiring import UNetShape


class RungA(Backbone):
    """The network of ADM (Fig. 16): 0 at initialization, whatever it is given.

    Args:
        config: Configuration of the network.

    Example:
        >>> from edm2lite.network.ladder.config import LadderConfig
        >>> net = LadderConfig(rung="a", img_resolution=8, img_channels=1, model_channels=16,
        ...                    channel_mult=(1, 2), num_blocks=1, attn_resolutions=(),
        ...                    head_channels=16).build()
        >>> net(torch.randn(2, 1, 8, 8), torch.zeros(2), Conditioning()).abs().max()
        tensor(0., grad_fn=<MaxBackward1>)
    """

    config: UNetShape
    block_class: ClassVar[type[BlockA]] = BlockA

    def __init__(self, config: UNetShape):
        super().__init__()
        self.config = config
        self.build_embedding()
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        res = config.img_resolution
        self.enc[f"{res}x{res}_conv"] = self.first_layer(config.img_channels)
        for place in config.encoder():
            self.enc[place.name] = self.block_class(place, "enc", config)
        for place in config.decoder():
            self.dec[place.name] = self.block_class(place, "dec", config)
        self.build_output(place.out_channels)

    def build_embedding(self) -> None:
        """Add the layers that the noise level and the class go through."""
        base, width = self.config.model_channels, self.config.emb_channels
        self.emb_features = self.features(base)
        self.emb_noise = self.block_class.layer(base, width)
        self.emb_hidden = self.block_class.layer(width, width)
        self.emb_label = self.class_layer() if self.config.label_dim else None

    def features(self, num_channels: int) -> nn.Module:
        """Features of a number, which the noise level is turned into."""
        return Sinusoids(num_channels)

    def class_layer(self) -> nn.Module:
        """The layer from a class, as a one-hot vector, to the embedding."""
        shape = self.config.label_dim, self.config.emb_channels
        return PlainConv(*shape, bias=False, init="normal")

    def first_layer(self, img_channels: int) -> nn.Module:
        """The convolution of the input."""
        return self.block_class.layer(img_channels, self.config.model_channels, (3, 3))

    def build_output(self, channels: int) -> None:
        """Add what comes after the last block."""
        self.out_norm = self.block_class.norm(channels)
        self.out_conv = self.block_class.layer(
            channels, self.config.img_channels, (3, 3), last=True
        )

    def blocks(self) -> list[nn.Module]:
        """The residual blocks, encoder first."""
        _, *encoder = self.enc.values()
        return [*encoder, *self.dec.values()]

    def logvar_layers(self, num_channels: int) -> tuple[nn.Module, nn.Module]:
        """Features and layer of the uncertainty head, of the kind that the network is made of."""
        return Fourier(num_channels), self.block_class.layer(num_channels, 1)

    def embed(self, c_noise: Tensor, conditioning: Conditioning) -> Tensor:
        """Embedding of noise level and class, [N, C_emb] float32, which modulates every block."""
        emb = self.noise_embedding(c_noise)
        label = conditioning.get("label")
        if self.emb_label is not None and label is not None:
            emb = emb + self.emb_label(self.class_input(label))
        return F.silu(emb)

    def noise_embedding(self, c_noise: Tensor) -> Tensor:
        """The part of the embedding that the noise level has."""
        emb: Tensor = self.emb_hidden(F.silu(self.emb_noise(self.emb_features(c_noise))))
        return emb

    def class_input(self, label: Tensor) -> Tensor:
        """[N, label_dim], one-hot vectors of the classes."""
        return ClassLabel(self.config.label_dim).vectors(label)

    def forward(self, x: Tensor, c_noise: Tensor, conditioning: Conditioning) -> Tensor:
        """F_x of input of unit variance, see :meth:`Backbone.forward`."""
        emb = self.embed(c_noise, conditioning)
        stem, *encoder = self.enc.values()
        x = self.input(x)
        x = stem(x.movedim(1, -1).contiguous().movedim(-1, 1))  # channels last: faster
        skips = [x]
        for block in encoder:
            x = block(x, emb)
            skips.append(x)
        for block in self.dec.values():
            if block.takes_skip:
                x = torch.cat([x, skips.pop()], dim=1)
            x = block(x, emb)
        return self.output(x)

    def input(self, x: Tensor) -> Tensor:
        """What the first convolution sees."""
        return x

    def output(self, x: Tensor) -> Tensor:
        """F_x of the features of the last block."""
        F_x: Tensor = self.out_conv(F.silu(self.out_norm(x)))
        return F_x


class RungC(RungA):
    """Biases become one channel of ones at the input; random Fourier features; all layers alike."""

    block_class = BlockC

    def features(self, num_channels: int) -> nn.Module:
        """Random Fourier features."""
        return Fourier(num_channels)

    def class_layer(self) -> nn.Module:
        """A layer like all others."""
        return self.block_class.layer(self.config.label_dim, self.config.emb_channels)

    def class_input(self, label: Tensor) -> Tensor:
        """[N, label_dim] of RMS 1."""
        return super().class_input(label) * math.sqrt(self.config.label_dim)

    def first_layer(self, img_channels: int) -> nn.Module:
        """The convolution of the input and the channel of ones."""
        return super().first_layer(img_channels + 1)

    def input(self, x: Tensor) -> Tensor:
        """The input with a channel of ones."""
        return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)


class RungD(RungC):
    """Weights are normalized on use, and may have any length."""

    block_class = BlockD


class RungE(RungD):
    """Weights keep the length 1, by :func:`edm2lite.network.layers.normalize_weights_`."""

    block_class = BlockE


class RungF(RungE):
    """Blocks without groups of channels; one layer of embedding; a convolution alone at the end."""

    block_class = BlockF

    def build_embedding(self) -> None:
        """Add the layers that the noise level and the class go through."""
        super().build_embedding()
        del self.emb_hidden

    def noise_embedding(self, c_noise: Tensor) -> Tensor:
        """The part of the embedding that the noise level has."""
        emb: Tensor = self.emb_noise(self.emb_features(c_noise))
        return emb

    def build_output(self, channels: int) -> None:
        """Add what comes after the last block."""
        self.out_conv = self.block_class.layer(
            channels, self.config.img_channels, (3, 3), last=True
        )

    def output(self, x: Tensor) -> Tensor:
        """F_x of the features of the last block."""
        F_x: Tensor = self.out_conv(x)
        return F_x
