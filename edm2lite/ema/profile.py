"""Averaging profiles: how much each moment of a training run contributes to an average of it.

Every profile is described by its cumulative weight P(t), the share of the average that comes from
weights of before t images: 0 at the start of training, 1 at the end of the profile. The formulas of
the power function are in :mod:`edm2lite.ema.formulas`. NumPy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edm2lite.ema.formulas import decay_to_half_life, gamma_to_sigma_rel, sigma_rel_to_gamma


class Profile(Protocol):
    """An average of a training run up to ``nimg`` images, described by its cumulative weight."""

    @property
    def nimg(self) -> int:
        """End of the profile: it has no weight after this many images."""
        ...

    def cumulative(self, t: NDArray[np.float64]) -> NDArray[np.float64]:
        """Share of the average that comes from before ``t`` images.

        In [0, 1], non-decreasing, and 1 from ``nimg`` on.
        """
        ...


@dataclass(frozen=True)
class PowerFunction:
    """The power-function average (Eq. 1), ``P(t) = (t / nimg) ** (gamma + 1)``.

    Attributes:
        gamma: Exponent, >= 0.
        nimg: End of the profile in images, > 0.

    Raises:
        ValueError: If ``gamma`` or ``nimg`` is out of range.

    Example:
        >>> profile = PowerFunction.of_width(0.10, nimg=64_000)
        >>> round(profile.gamma, 3), round(profile.mean_rel, 3)
        (6.937, 0.888)
        >>> round(float(profile.cumulative(32_000)), 4)  # share of the first half of the run
        0.0041
    """

    gamma: float
    nimg: int

    def __post_init__(self) -> None:
        gamma_to_sigma_rel(self.gamma)
        _check_nimg(self.nimg)

    @classmethod
    def of_width(cls, sigma_rel: float, nimg: int) -> PowerFunction:
        """The profile of relative width ``sigma_rel``, which must lie in (0, 0.2887)."""
        return cls(float(sigma_rel_to_gamma(sigma_rel)), nimg)

    @property
    def sigma_rel(self) -> float:
        """Standard deviation of the profile as a fraction of ``nimg`` (Eq. 123)."""
        return float(gamma_to_sigma_rel(self.gamma))

    @property
    def mean_rel(self) -> float:
        """Mean of the profile as a fraction of ``nimg``: (gamma + 1) / (gamma + 2) (Eq. 122)."""
        return (self.gamma + 1) / (self.gamma + 2)

    def cumulative(self, t: ArrayLike) -> NDArray[np.float64]:
        """Share of the average that comes from before ``t`` images."""
        return np.clip(np.asarray(t, np.float64) / self.nimg, 0, 1) ** (self.gamma + 1)


@dataclass(frozen=True)
class Step:
    """The weights of one moment, as a raw checkpoint holds them: an average of no length.

    After an update the weights stay what they are until the next one, so they count for the images
    of the update that made them: ``P`` rises from 0 at ``nimg - stride`` to 1 at ``nimg``. This is
    the convention of the tracker, whose average after one update is those weights. It is the power
    function in the limit of infinite ``gamma``.

    Attributes:
        nimg: Moment of the weights, in images.
        stride: Images of one update, > 0. It is taken as at least a millionth of ``nimg``.

    Raises:
        ValueError: If ``nimg`` or ``stride`` is not positive.

    Example:
        >>> Step(1000, stride=10).cumulative([900, 990, 1000])
        array([0., 0., 1.])
    """

    nimg: int
    stride: float = 1.0

    def __post_init__(self) -> None:
        _check_nimg(self.nimg)
        if not 0 < self.stride <= self.nimg:
            raise ValueError(f"stride must lie in (0, nimg = {self.nimg}], got {self.stride}")

    @property
    def gamma(self) -> float:
        """Exponent of the power function that this is a limit of: infinity."""
        return math.inf

    @property
    def sigma_rel(self) -> float:
        """Relative width of the power function that this is a limit of: 0."""
        return 0.0

    @property
    def kinks(self) -> tuple[float, ...]:
        """Time in images after which the weights count."""
        return (self.nimg - max(self.stride, 1e-6 * self.nimg),)

    def cumulative(self, t: ArrayLike) -> NDArray[np.float64]:
        """Share of the average that comes from before ``t`` images."""
        (begin,) = self.kinks
        return np.clip((np.asarray(t, np.float64) - begin) / (self.nimg - begin), 0, 1)


Stored = PowerFunction | Step
"""What a snapshot holds: a tracked average, or the weights themselves."""


@dataclass(frozen=True)
class Exponential:
    """The EMA of constant decay, ``P(t) = 2 ** ((t - nimg) / half_life)``.

    It starts from the initial weights, which therefore keep the mass ``2 ** (-nimg / half_life)``.

    Attributes:
        half_life: Images over which the weight of the past halves, > 0.
        nimg: End of the profile in images, > 0.

    Raises:
        ValueError: If ``half_life`` or ``nimg`` is not positive.

    Example:
        >>> profile = Exponential.of_decay(0.999, batch_size=64, nimg=1_000_000)
        >>> round(profile.half_life)
        44339
    """

    half_life: float
    nimg: int

    def __post_init__(self) -> None:
        _check_nimg(self.nimg)
        if not self.half_life > 0:
            raise ValueError(f"half_life must be a positive number of images, got {self.half_life}")

    @classmethod
    def of_decay(cls, decay: float, batch_size: float, nimg: int) -> Exponential:
        """The EMA that keeps ``decay``, in (0, 1), of itself every ``batch_size`` images."""
        return cls(decay_to_half_life(decay, batch_size), nimg)

    def cumulative(self, t: ArrayLike) -> NDArray[np.float64]:
        """Share of the average that comes from before ``t`` images."""
        return np.exp2(np.minimum(np.asarray(t, np.float64) - self.nimg, 0) / self.half_life)


@dataclass(frozen=True)
class Window:
    """The plain mean of the weights over the last ``width`` images (SWA, LAWA).

    Attributes:
        width: Images averaged over, 0 < width <= nimg.
        nimg: End of the window in images.

    Raises:
        ValueError: If ``width`` or ``nimg`` is out of range.

    Example:
        >>> Window(width=1000, nimg=4000).cumulative([3000, 3500, 4000])
        array([0. , 0.5, 1. ])
    """

    width: float
    nimg: int

    def __post_init__(self) -> None:
        _check_nimg(self.nimg)
        if not 0 < self.width <= self.nimg:
            raise ValueError(f"width must lie in (0, nimg = {self.nimg}], got {self.width}")

    def cumulative(self, t: ArrayLike) -> NDArray[np.float64]:
        """Share of the average that comes from before ``t`` images."""
        return np.clip((np.asarray(t, np.float64) - (self.nimg - self.width)) / self.width, 0, 1)

    @property
    def kinks(self) -> tuple[float, ...]:
        """Beginning of the window in images, where its weight is not smooth."""
        return (self.nimg - self.width,) if self.width < self.nimg else ()


@dataclass(frozen=True)
class Tabulated:
    """An average of any shape, given by the weights of equally long pieces of the run.

    Attributes:
        weights: Relative weight of each piece, oldest first; normalized here to sum to 1.
        nimg: End of the last piece in images.

    Raises:
        ValueError: If the weights are not one-dimensional and finite with a positive sum, or
            ``nimg`` is not positive.

    Example:
        >>> profile = Tabulated([0, 1, 3], nimg=3000)
        >>> profile.weights
        array([0.  , 0.25, 0.75])
        >>> profile.cumulative([2000])
        array([0.25])
    """

    weights: NDArray[np.float64] = field(repr=False)
    nimg: int

    def __post_init__(self) -> None:
        _check_nimg(self.nimg)
        weights = np.array(self.weights, dtype=np.float64)
        total = weights.sum()
        if weights.ndim != 1 or not weights.size or not np.isfinite(total) or total <= 0:
            raise ValueError(
                "weights must be a one-dimensional array of finite numbers with a positive sum,"
                f" got shape {weights.shape}, sum {total}"
            )
        object.__setattr__(self, "weights", weights / total)

    def cumulative(self, t: ArrayLike) -> NDArray[np.float64]:
        """Share of the average that comes from before ``t`` images."""
        edges = np.linspace(0, self.nimg, len(self.weights) + 1)
        shares = np.concatenate([[0], np.cumsum(self.weights)])
        cumulative: NDArray[np.float64] = np.interp(np.asarray(t, np.float64), edges, shares)
        return cumulative


def kinks(profile: Profile) -> tuple[float, ...]:
    """Times in images, other than its end, at which a profile is not smooth.

    They are what its attribute ``kinks`` says, and none if it has no such attribute. Integrals over
    a run are split there.

    Args:
        profile: A profile of any kind.

    Example:
        >>> kinks(Window(width=1000, nimg=4000)), kinks(PowerFunction(6.94, 4000))
        ((3000,), ())
    """
    return tuple(getattr(profile, "kinks", ()))


def _check_nimg(nimg: int) -> None:
    if not nimg > 0:
        raise ValueError(
            f"nimg, the end of the average, must be a positive image count, got {nimg}"
        )
