"""How much a noise level counts in the loss: lambda(sigma), the factor of ``(D_x - y)**2``.

Each formula is that of its paper for data of variance 1, at the level s = sigma / sigma_data; the
factor ``1 / sigma_data**2`` then makes the loss independent of the unit of the data. With SNR =
1/s^2, the same weight on what another network predicts is ``lambda c_out**2``
(:func:`weight_on`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from edm2lite.diffusion.parametrization import PARAMETRIZATIONS, Parametrization

Kind = Literal[
    "uncertainty", "edm", "epsilon", "x0", "snr_plus_one", "min_snr", "soft_min_snr", "sigmoid",
    "flow",
]  # fmt: skip


def _edm(s: Tensor) -> Tensor:
    square = s.clamp(max=1e9) ** 2  # 1 at infinity
    return (square + 1) / square


WEIGHTINGS: dict[Kind, Callable[[Tensor, Weighting], Tensor]] = {
    "uncertainty": lambda s, w: _edm(s),  # and divided by e**u in the loss
    "edm": lambda s, w: _edm(s),
    "epsilon": lambda s, w: s**-2,
    "x0": lambda s, w: torch.ones_like(s),
    "snr_plus_one": lambda s, w: _edm(s),  # the same: v-prediction is edm with the sign of F turned
    "min_snr": lambda s, w: (s**-2).clamp(max=w.gamma),
    "soft_min_snr": lambda s, w: 1 / (s**2 + 1),
    "sigmoid": lambda s, w: 1 / (s**2 + math.exp(-w.bias)),
    "flow": lambda s, w: (1 + 1 / s) ** 2,
}


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """lambda(sigma), one of :data:`WEIGHTINGS`.

    Attributes:
        kind: ``uncertainty`` is that of EDM2: edm, over the loss that the network expects of each
            level, which it learns on the way (Eqs. 14 to 16 and 21). The others are fixed.
        gamma: Largest SNR that counts, of min_snr (arXiv 2303.09556).
        bias: Of sigmoid: log SNR - bias is weighed (arXiv 2410.19324).
    """

    kind: Kind = "uncertainty"
    gamma: float = 5.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in WEIGHTINGS:
            raise ValueError(f"kind must be one of {', '.join(WEIGHTINGS)}, got {self.kind!r}")
        if not self.gamma > 0:
            raise ValueError(f"gamma must be positive, got {self.gamma}")
        for name, owner in (("gamma", "min_snr"), ("bias", "sigmoid")):
            value = getattr(self, name)
            if value != type(self).__dataclass_fields__[name].default and self.kind != owner:
                raise ValueError(f"{name} belongs to {owner}, got {name} = {value} of {self.kind}")

    @property
    def is_learned(self) -> bool:
        """Whether the network's own uncertainty joins in."""
        return self.kind == "uncertainty"

    def __call__(self, sigma: Tensor, sigma_data: float) -> Tensor:
        """Lambda at noise levels above 0, of any shape; at infinity its limit."""
        return WEIGHTINGS[self.kind](sigma / sigma_data, self) / sigma_data**2

    def vanishes_at_infinity(self) -> bool:
        """Whether pure noise does not count, so that nothing is learned there."""
        return not self(torch.tensor(float("inf")), 1.0) > 0


def weight_on(
    prediction: Parametrization, weight: Tensor, sigma: Tensor, sigma_data: float
) -> Tensor:
    """The weight of the squared error of F that equals ``weight`` on that of D, at finite levels.

    ``(D_x - y)**2 = c_out**2 (F - target)**2``: epsilon for the noise, v for the velocity, x0 for
    y / sigma_data, flow for (n - y / sigma_data) / sqrt(2).
    """
    _, c_out = PARAMETRIZATIONS[prediction].skip_out(sigma, sigma_data)
    return weight * c_out**2
