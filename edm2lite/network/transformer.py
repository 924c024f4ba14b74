"""What the transformers have in common: sizes, conditions, and the presets S, B, L and XL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from edm2lite.network.additions import check_ratio, num_classes
from edm2lite.network.backbone import BackboneConfig
from edm2lite.network.conditions import ClassLabel, Condition, Vector
from edm2lite.network.text import TextConfig

T = TypeVar("T", bound="TransformerConfig")

PRESETS: dict[str, dict[str, int]] = {
    "S": {"width": 384, "num_blocks": 12, "num_heads": 6},
    "B": {"width": 768, "num_blocks": 12, "num_heads": 12},
    "L": {"width": 1024, "num_blocks": 24, "num_heads": 16},
    "XL": {"width": 1152, "num_blocks": 28, "num_heads": 16},
}
"""Sizes of arXiv 2212.09748; the name of a preset also has the side of its patches: ``XL/2``."""


_SIZES = (
    "img_resolution", "img_channels", "patch_size", "width", "num_blocks", "num_heads", "mlp_ratio"
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(BackboneConfig):
    """Shape of a transformer over patches of images.

    Images of any size that is a multiple of ``patch_size`` can be taken; positions are those of
    :mod:`edm2lite.network.patches`.

    Attributes:
        img_resolution: Side of the training images, where positions are whole numbers.
        img_channels: Number of channels of images or latents.
        label_dim: Number of classes, or length of vectors of norm 1 in their place; 0 for none.
        vectors: Name -> length of vectors that the network is told besides; 0 is their null form.
        text: Text that the network is told, or None; every block attends to its tokens.
        learned_classes: Classes that have vectors of their own, learned later; None for none.
        hypernetwork: Width of the hidden layer of a hypernetwork over that of the embedding, or
            None.
        patch_size: Side of a patch.
        width: Number of channels of a token.
        num_blocks: Number of blocks.
        num_heads: Number of heads of the attention.
        mlp_ratio: Width of the hidden layer of a block over that of a token.

    Raises:
        ValueError: If a value is out of range, or widths do not fit each other.

    Example:
        >>> from edm2lite.network.dit import DiTConfig
        >>> config = DiTConfig.preset("B/4", img_resolution=32, img_channels=4, label_dim=1000)
        >>> config.width, config.num_blocks, config.size_multiple, config.condition_names
        (768, 12, 4, ('label',))
    """

    label_dim: int = 0
    vectors: Mapping[str, int] = field(default_factory=dict)
    text: TextConfig | None = None
    learned_classes: tuple[int, ...] | None = None
    hypernetwork: int | None = None
    patch_size: int = 2
    width: int = 384
    num_blocks: int = 12
    num_heads: int = 6
    mlp_ratio: int = 4

    groups: ClassVar[Mapping[str, str]] = {
        "text": r"backbone\.(emb_pooled|pooled_embedder)|\.text_attn\.",
        "embedding": r"backbone\.(emb_|[txy]_embedder|vector_)",
        "modulation": r"modulation|\.(gains|angles)$",
        "attention": r"\.attn\.",
        "mlp": r"\.mlp\.",
        "output": r"backbone\.(final_layer|out_)",
    }

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in _SIZES}
        sizes.update({f"vectors.{name}": length for name, length in self.vectors.items()})
        for name, value in sizes.items():
            if not 1 <= value <= 65536:
                raise ValueError(f"{name} must lie between 1 and 65536, got {value}")
        if not 0 <= self.label_dim < 2**31:
            raise ValueError(f"label_dim must lie between 0 and 2**31 - 1, got {self.label_dim}")
        num_classes(self.label_dim, self.learned_classes)
        check_ratio(self.hypernetwork)
        if self.img_resolution % self.patch_size:
            raise ValueError(
                f"img_resolution must be a multiple of patch_size = {self.patch_size}, got"
                f" {self.img_resolution}"
            )
        if self.width % (4 * self.num_heads):
            raise ValueError(
                f"width must be a multiple of 4 num_heads = {4 * self.num_heads}, got {self.width}"
            )

    @classmethod
    def preset(cls: type[T], name: str, **settings: Any) -> T:
        """The configuration of a preset.

        Args:
            name: ``S``, ``B``, ``L`` or ``XL``, a slash, and the side of a patch.
            **settings: Further fields.

        Raises:
            ValueError: If there is no such preset, or a field is out of range.
        """
        size, _, patch = name.partition("/")
        if size not in PRESETS or not re.fullmatch("[1-9][0-9]*", patch):
            raise ValueError(
                f"a preset is one of {', '.join(PRESETS)} with the side of its patches, such as"
                f" XL/2, got {name!r}"
            )
        sizes: dict[str, Any] = {**PRESETS[size], "patch_size": int(patch)}
        return cls(**sizes, **settings)

    @property
    def size_multiple(self) -> int:
        """The side of a patch."""
        return self.patch_size

    @property
    def side(self) -> int:
        """Number of patches along each side of the training images."""
        return self.img_resolution // self.patch_size

    @property
    def num_classes(self) -> int:
        """Number of classes, learned ones included."""
        return num_classes(self.label_dim, self.learned_classes)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """A class label, vectors and text, where there are any."""
        label = (ClassLabel(self.num_classes),) if self.label_dim else ()
        vectors = (Vector(name, length) for name, length in self.vectors.items())
        return (*label, *vectors, *(self.text.conditions if self.text else ()))
