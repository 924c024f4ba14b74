"""How much a noise level counts in the loss: lambda(sigma), the factor of ``(D_x - y)**2``.

Each formula is that of its paper for data of variance 1, at the level s = sigma / sigma_data; the
factor ``1 / sigma_data**2`` then makes the loss independent of the unit of the data. The same
weight on what a network of another parametrization predicts is ``lambda c_out**2``
(:func:`weight_on`). The signal-to-noise ratio is SNR = 1 / s**2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from edm2lite.diffusion.parametrization import PARAMETRIZATIONS, Parametrization

GAMMA, BIAS = 5.0, 0.0  # defaults of the two weightings that have a parameter


def _snr_plus_one(s: Tensor) -> Tensor:
    square = s.clamp(max=1e9) ** 2  # the weight is 1 at infinity
    return (square + 1) / square


WEIGHTINGS: dict[str, Callable[[Tensor, Weighting], Tensor]] = {
    "uncertainty": lambda s, w: _snr_plus_one(s),  # and the loss divides it by e**u
    "edm": lambda s, w: _snr_plus_one(s),
    "snr_plus_one": lambda s, w: _snr_plus_one(s),  # its name where v is predicted
    "epsilon": lambda s, w: s**-2,
    "x0": lambda s, w: torch.ones_like(s),
    "min_snr": lambda s, w: (s**-2).clamp(max=w.gamma),
    "soft_min_snr": lambda s, w: 1 / (s**2 + 1),
    "sigmoid": lambda s, w: 1 / (s**2 + math.exp(-w.bias)),
    "flow": lambda s, w: (1 + 1 / s) ** 2,
}
"""lambda by ``kind``, as a function of s and of the :class:`Weighting`, for data of variance 1."""


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """lambda(sigma), one of :data:`WEIGHTINGS`.

    Attributes:
        kind: Name of the weighting. ``uncertainty`` is that of EDM2: edm, divided by the loss that
            the network expects of each level, which it learns on the way (Eqs. 14 to 16 and 21).
            The others are fixed.
        gamma: Upper limit of the SNR in ``min_snr`` (arXiv 2303.09556).
        bias: Bias b of ``sigmoid``, which is ``sigmoid(b - ln SNR)`` on the noise (arXiv
            2410.19324).

    Example:
        >>> sigma = torch.tensor([0.1, 1.0, 10.0])
        >>> Weighting(kind="min_snr", gamma=5)(sigma, sigma_data=1.0)
        tensor([5.0000, 1.0000, 0.0100])
    """

    kind: str = "uncertainty"
    gamma: float = GAMMA
    bias: float = BIAS

    def __post_init__(self) -> None:
        if self.kind not in WEIGHTINGS:
            raise ValueError(f"kind must be one of {', '.join(WEIGHTINGS)}, got {self.kind!r}")
        if not self.gamma > 0:
            raise ValueError(f"gamma must be positive, got {self.gamma}")
        if self.gamma != GAMMA and self.kind != "min_snr":
            raise ValueError(f"gamma belongs to min_snr, got gamma = {self.gamma} of {self.kind}")
        if self.bias != BIAS and self.kind != "sigmoid":
            raise ValueError(f"bias belongs to sigmoid, got bias = {self.bias} of {self.kind}")

    @property
    def is_learned(self) -> bool:
        """Whether the loss is divided by the uncertainty that the network learns."""
        return self.kind == "uncertainty"

    def __call__(self, sigma: Tensor, sigma_data: float) -> Tensor:
        """Lambda at noise levels above 0, of any shape; at infinity its limit."""
        return WEIGHTINGS[self.kind](sigma / sigma_data, self) / sigma_data**2

    def vanishes_at_infinity(self) -> bool:
        """Whether pure noise does not count, so that nothing is learned there."""
        return not self(torch.tensor(float("inf")), 1.0) > 0


def edm_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """``(sigma**2 + sigma_data**2) / (sigma sigma_data)**2``, the weighting of EDM.

    With it an untrained network, which predicts ``c_skip x``, has a loss of 1 per element at every
    noise level.

    Args:
        sigma: Noise levels above 0, any shape.
        sigma_data: Standard deviation of the data.

    Returns:
        Weights of the shape and dtype of ``sigma``; at infinity their limit.

    Example:
        >>> edm_weight(torch.tensor([0.5, 1.0]), sigma_data=0.5)
        tensor([8., 5.])
    """
    return Weighting(kind="edm")(sigma, sigma_data)


def weight_on(
    prediction: Parametrization, weight: Tensor, sigma: Tensor, sigma_data: float
) -> Tensor:
    """The weight of the squared error of F that equals ``weight`` on that of D.

    ``(D_x - y)**2 = c_out**2 (F - target)**2``, where the target is that of
    :mod:`edm2lite.diffusion.parametrization`: the noise for epsilon, the velocity for v, and so on.

    Args:
        prediction: What the network predicts.
        weight: Weights of the squared error of D.
        sigma: Finite noise levels, shaped like ``weight``.
        sigma_data: Standard deviation of the data.

    Example:
        >>> sigma = torch.tensor([0.5, 2.0])
        >>> weight = Weighting(kind="epsilon")(sigma, sigma_data=1.0)
        >>> weight_on("epsilon", weight, sigma, sigma_data=1.0)
        tensor([1., 1.])
    """
    _, c_out = PARAMETRIZATIONS[prediction].skip_out(sigma, sigma_data)
    return weight * c_out**2
