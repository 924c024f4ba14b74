"""MP-DiT with one of its parts exchanged, for the ablation of ``benchmarks/transformers.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from edm2lite.network.kernels.unit_rms import unit_rms
from edm2lite.network.mp_dit import MPDiT, MPDiTBlock, MPDiTConfig, scaled
from edm2lite.network.operations import mp_join, mp_sum

Part = Literal["rotation", "fixed share", "fixed angle", "no norm"]


@dataclass(frozen=True, kw_only=True)
class VariantConfig(MPDiTConfig):
    """MP-DiT with another part.

    Attributes:
        part: ``rotation``: the embedding turns pairs of channels, in place of scaling them.
            ``fixed share``: branches have the share 0.3 of an MP-Sum, and the embedding scales what
            they return, as in arXiv 2505.19122. ``fixed angle``: the embedding does not reach the
            angles. ``no norm``: tokens are not divided by their RMS at the end of a block.
    """

    kind: Literal["mp_dit_variants:VariantConfig"] = "mp_dit_variants:VariantConfig"
    part: Part

    def build(self) -> MPDiT:
        return Variant(self)


class VariantBlock(MPDiTBlock):
    def __init__(self, config: VariantConfig):
        super().__init__(config)
        self.part = config.part
        if self.part == "fixed share":
            del self.angles

    def forward(self, x: Tensor, emb: Tensor, turns: Tensor) -> Tensor:
        told = self.modulation(emb).unflatten(1, (4, -1)) * self.gains[:, None]
        x = self._join(x, self.attn(self._modulated(x, told[:, 0]), turns), told[:, 2], 0)
        x = self._join(x, self.mlp(self._modulated(x, told[:, 1])), told[:, 3], 1)
        return x if self.part == "no norm" else unit_rms(x, dim=2)

    def _modulated(self, x: Tensor, told: Tensor) -> Tensor:
        if self.part != "rotation":
            return scaled(x, told)
        a, b = x.chunk(2, dim=2)
        turn = told[:, None, : a.shape[2]].to(x.dtype)
        return torch.cat([a * turn.cos() - b * turn.sin(), a * turn.sin() + b * turn.cos()], 2)

    def _join(self, x: Tensor, y: Tensor, told: Tensor, which: int) -> Tensor:
        if self.part == "fixed share":
            return mp_sum(x, scaled(y, told), 0.3)
        angle = self.angles[which] if self.part == "fixed angle" else told + self.angles[which]
        return mp_join(x, y, angle if angle.ndim == 1 else angle[:, None])


class Variant(MPDiT):
    block_class: ClassVar[type[MPDiTBlock]] = VariantBlock
