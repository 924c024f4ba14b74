"""The magnitude-preserving U-Net of EDM2, config G: ``F(x, c_noise, conditioning)``.

Wiring (paper, Figs. 21 and 22): an encoder of residual blocks, each of whose outputs is kept; a
decoder that takes them back in reverse order by MP-Cat; attention at the low resolutions; one
embedding of noise level and class, which modulates every block. Tensor names follow the released
EDM2 networks. Text may be told besides (:mod:`edm2lite.network.text`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from edm2lite.network.additions import Hypernetwork, LearnedClasses, check_ratio, num_classes
from edm2lite.network.backbone import Backbone
from edm2lite.network.block import Block
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.conditions import ClassLabel, Condition, ConditionImage
from edm2lite.network.controlnet import Control, ControlBranch
from edm2lite.network.layers import MPConv, MPFourier
from edm2lite.network.operations import mp_cat, mp_silu, mp_sum
from edm2lite.network.text import PixelTextAttention, UNetText, pooled_of, text_of
from edm2lite.network.wiring import Place, UNetShape, check_ranges

_RANGES = {
    "cond_channels": (0, 65536),
    **dict.fromkeys(("label_balance", "concat_balance", "res_balance", "attn_balance"), (0, 1)),
    "clip_act": (1e-3, 1e30),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class UNetConfig(UNetShape):
    """Shape of a U-Net: widths, depths, where it attends, and the shares of its sums.

    Attributes:
        img_resolution: Side of the training images, which also decides the levels that attend.
        img_channels: Number of channels of images or latents.
        label_dim: Number of classes, or length of a conditioning vector; 0 for none.
        cond_channels: Number of channels of a condition image beside the noisy one; 0 for none.
        model_channels: Base width C; level i has ``C * channel_mult[i]`` channels.
        channel_mult: One factor per resolution, from full resolution downwards.
        num_blocks: Number of residual blocks per resolution in the encoder; the decoder has one
            more.
        attn_resolutions: Resolutions whose blocks have attention.
        head_channels: Number of channels of an attention head.
        dropout: Probability of dropout within the residual branches.
        text: Text that the network is told, or None.
        controls: Images that the network follows, each by a ControlNet of its own
            (:mod:`edm2lite.network.controlnet`); None for none.
        learned_classes: Classes that have vectors of their own, learned later; None for none.
        hypernetwork: Width of the hidden layer of a hypernetwork over that of the embedding, or
            None.
        label_balance: Share t of the class in the embedding, or of class and text together.
        concat_balance: Share t of the skip connection where the decoder takes it back.
        res_balance: Share t of the convolutions of a block in its sum with the main path.
        attn_balance: Share t of the attention of a block in its sum with the main path.
        clip_act: Limit of the absolute value of a block's output, for float16.

    Raises:
        ValueError: If sizes, widths and levels do not fit each other, or a value is out of range.

    Example:
        >>> config = UNetConfig(img_resolution=64, img_channels=4, label_dim=1000)
        >>> config.size_multiple, config.emb_channels, config.condition_names
        (8, 768, ('label',))
    """

    kind: Literal["unet"] = "unet"
    cond_channels: int = 0
    text: UNetText | None = None
    controls: tuple[Control, ...] | None = None
    learned_classes: tuple[int, ...] | None = None
    hypernetwork: int | None = None
    label_balance: float = 0.5
    concat_balance: float = 0.5
    res_balance: float = 0.3
    attn_balance: float = 0.3
    clip_act: float = 256.0

    tensor_prefix: ClassVar[str] = "unet"  # as in the released networks
    title: ClassVar[str] = (
        "the magnitude-preserving network of EDM2 (config G,"
        " [arXiv 2312.02696](https://arxiv.org/abs/2312.02696))"
    )
    groups: ClassVar[Mapping[str, str]] = {
        "control": r"unet\.controls\.",
        "text": r"unet\.emb_pooled|\.text_attn\.",
        "embedding": r"unet\.emb_|emb_(linear|gain)",
        "attention": r"\.attn_",
        "encoder": r"unet\.enc\.",
        "decoder": r"unet\.dec\.",
        "output": r"unet\.out_",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, _RANGES)
        num_classes(self.label_dim, self.learned_classes)
        check_ratio(self.hypernetwork)
        names = [condition.name for condition in self.conditions]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(
                f"controls must have names of their own, {twice[0]} is that of two conditions"
            )
        levels = [self.img_resolution >> level for level in range(len(self.channel_mult))]
        if unknown := sorted({*self.text_resolutions} - {*levels}):
            raise ValueError(
                f"text.attn_resolutions must be among the resolutions {levels} of the network, got"
                f" {unknown[0]}"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes, learned ones included."""
        return num_classes(self.label_dim, self.learned_classes)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """A class label, a condition image, text and images to follow, where there are any."""
        label = (ClassLabel(self.num_classes),) if self.label_dim else ()
        image = (ConditionImage(self.cond_channels),) if self.cond_channels else ()
        text = self.text.conditions if self.text else ()
        return (*label, *image, *text, *(c.condition for c in self.controls or ()))

    @property
    def text_resolutions(self) -> tuple[int, ...]:
        """Resolutions whose blocks attend to the tokens of a text."""
        return self.text.attn_resolutions if self.text else ()

    def build(self) -> UNet:
        """The network, with random weights."""
        return UNet(self)


class UNet(Backbone):
    """The network F; :class:`edm2lite.diffusion.precond.Precond` makes a denoiser of it.

    Gains are vectors of length 1, not scalars, so that FSDP2 can shard every parameter.

    Args:
        config: Configuration of the network.

    Example:
        >>> config = UNetConfig(img_resolution=8, img_channels=1, model_channels=16,
        ...                     channel_mult=(1, 2), num_blocks=1, attn_resolutions=(),
        ...                     head_channels=16)
        >>> net = UNet(config)
        >>> F_x = net(torch.randn(2, 1, 8, 8), torch.zeros(2), Conditioning())
        >>> F_x.shape, len(net.blocks())
        (torch.Size([2, 1, 8, 8]), 10)
    """

    config: UNetConfig

    block_class: ClassVar[type[Block]] = Block
    """Class of the residual blocks; a subclass of the network may have another one."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        self.out_gain = nn.Parameter(torch.zeros(1))
        self.emb_fourier = MPFourier(config.model_channels)
        self.emb_noise = MPConv(config.model_channels, config.emb_channels)
        self.emb_label = MPConv(config.label_dim, config.emb_channels) if config.label_dim else None
        pooled = config.text.pooled if config.text else 0
        self.emb_pooled = MPConv(pooled + 1, config.emb_channels) if pooled else None
        learned, ratio = config.learned_classes, config.hypernetwork
        self.emb_learned = (
            LearnedClasses(learned, config.label_dim, config.emb_channels) if learned else None
        )
        self.emb_hyper = Hypernetwork(config.emb_channels, ratio) if ratio else None
        self.enc = nn.ModuleDict()
        self.dec = nn.ModuleDict()
        inputs = config.img_channels + config.cond_channels + 1  # ones, in place of biases
        res = config.img_resolution
        self.enc[f"{res}x{res}_conv"] = MPConv(inputs, config.model_channels, (3, 3))
        places = config.encoder()
        for place in places:
            self.enc[place.name] = self._block(place, "enc")
        for place in config.decoder():
            self.dec[place.name] = self._block(place, "dec")
        self.out_conv = MPConv(place.out_channels, config.img_channels, (3, 3))
        widths = [config.model_channels, *(place.out_channels for place in places)]
        halvings = (place.resample == "down" for place in places)
        levels = list(itertools.accumulate(halvings, initial=0))
        self.controls = nn.ModuleDict()
        for control in config.controls or ():
            stem = MPConv(inputs, config.model_channels, (3, 3))
            blocks = {place.name: self._block(place, "enc") for place in places}
            self.controls[control.name] = ControlBranch(
                control.channels, stem, blocks, widths, levels
            )

    def _block(self, place: Place, flavor: Literal["enc", "dec"]) -> Block:
        """The block at a place, with what all blocks of the network have in common."""
        config, num_heads = self.config, place.out_channels // self.config.head_channels
        text_attn = None
        if config.text and place.text:
            text_attn = PixelTextAttention(place.out_channels, config.text.tokens, num_heads)
        return self.block_class(
            place.in_channels,
            place.out_channels,
            emb_channels=config.emb_channels,
            flavor=flavor,
            resample=place.resample,
            num_heads=num_heads if place.attention else 0,
            text_attn=text_attn,
            takes_skip=place.takes_skip,
            res_balance=config.res_balance,
            attn_balance=config.attn_balance,
            dropout=config.dropout,
            clip_act=config.clip_act,
        )

    def blocks(self) -> list[nn.Module]:
        """The residual blocks, encoder first; then those of the controls."""
        _, *encoder = self.enc.values()
        branches = self.controls.values()
        copied = [b for c in branches if isinstance(c, ControlBranch) for b in c.blocks()]
        return [*encoder, *self.dec.values(), *copied]

    def embed(self, c_noise: Tensor, conditioning: Conditioning) -> Tensor:
        """Embedding of noise level, class and pooled text, which modulates every block.

        Args:
            c_noise: [N] float32.
            conditioning: What the network is told. Without ``label`` a conditional network sees the
                zero vector, as in EDM2; without ``pooled``, the null form of text.

        Returns:
            [N, C_emb] float32, of magnitude 1.
        """
        emb, told = self.emb_noise(self.emb_fourier(c_noise)), None
        if self.emb_label is not None:
            label = conditioning.get("label")
            vectors = emb.new_zeros(1, self.config.num_classes)
            if label is not None:
                vectors = ClassLabel(self.config.num_classes).vectors(label)
            told = self.class_embedding(vectors)
        if self.emb_pooled is not None and self.config.text is not None:
            text_emb = self.emb_pooled(pooled_of(conditioning, self.config.text, emb))
            told = text_emb if told is None else mp_sum(told, text_emb, 0.5)
        if told is not None:
            emb = mp_sum(emb, told.expand_as(emb), self.config.label_balance)
        emb = mp_silu(emb)
        result: Tensor = emb if self.emb_hyper is None else self.emb_hyper(emb)
        return result

    def class_embedding(self, vectors: Tensor) -> Tensor:
        """[N, num_classes] one-hot vectors -> [N, C_emb], of magnitude 1."""
        if self.emb_learned is None:
            return self.known_classes(vectors)
        emb: Tensor = self.emb_learned(vectors, self.known_classes)
        return emb

    def known_classes(self, vectors: Tensor) -> Tensor:
        """[N, label_dim] one-hot vectors -> [N, C_emb], without learned classes."""
        assert self.emb_label is not None
        emb: Tensor = self.emb_label(vectors * math.sqrt(self.config.label_dim))
        return emb

    def forward(self, x: Tensor, c_noise: Tensor, conditioning: Conditioning) -> Tensor:
        """F_x of input of unit variance, see :meth:`Backbone.forward`; zero at initialization."""
        emb = self.embed(c_noise, conditioning)
        text = text_of(conditioning, self.config.text, x)
        told = (emb,) if text is None else (emb, text)
        image = conditioning.get("image")
        seen = [x] if image is None or not self.config.cond_channels else [x, image.to(x.dtype)]
        x = torch.cat([*seen, torch.ones_like(x[:, :1])], dim=1)
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)  # channels last: faster convolutions
        inputs, (stem, *encoder) = x, self.enc.values()
        x = stem(x)
        skips = [x]
        for block in encoder:
            x = block(x, *told)
            skips.append(x)
        for name, control in self.controls.items():
            skips, x = control(inputs, told, conditioning[name], skips)
        for block in self.dec.values():
            if block.takes_skip:
                x = mp_cat(x, skips.pop(), self.config.concat_balance)
            x = block(x, *told)
        F_x: Tensor = self.out_conv(x, gain=self.out_gain)
        return F_x
