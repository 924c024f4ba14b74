"""Averaging profiles: how much of the average of a training run comes from each moment of it.

Every profile is seen through its cumulative weight P(tau), the share of the average that comes from
weights older than tau images: 0 at the start of training, 1 at the end of the profile. NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

SIGMA_REL_MAX = 12**-0.5
"""Relative width of the uniform average over the whole run (gamma = 0), the widest there is."""


def sigma_rel_to_gamma(sigma_rel: ArrayLike) -> NDArray[np.float64]:
    """Exponent of the power-function profile with the given relative width.

    Inverts ``sigma_rel**2 = (gamma + 1) / ((gamma + 2)**2 * (gamma + 3))`` (Eq. 123). With
    ``u = gamma + 2`` and ``t = sigma_rel**-2`` this is ``u**3 + u**2 - t*u + t = 0``. Its largest
    root lies below ``sqrt(t)`` on a convex branch, so Newton's method descends to it from there.

    Args:
        sigma_rel: Standard deviation of the profile as a fraction of training time, any shape,
            each value in the open interval (0, 12**-0.5).

    Returns:
        gamma, float64, same shape, > 0.

    Raises:
        ValueError: A width is outside the interval or not finite.
    """
    sigma_rel = np.asarray(sigma_rel, dtype=np.float64)
    if not np.all((sigma_rel > 0) & (sigma_rel < SIGMA_REL_MAX)):
        raise ValueError(
            f"sigma_rel must lie between 0 and {SIGMA_REL_MAX:.4f} (the width of a uniform average"
            f" of the whole run), got {sigma_rel}; typical lengths are 0.02 to 0.25"
        )
    t = sigma_rel**-2
    u = np.sqrt(t)
    for _ in range(20):  # quadratic convergence; the last steps only polish rounding
        u = u - (u**3 + u**2 - t * u + t) / (3 * u**2 + 2 * u - t)
    return u - 2


def gamma_to_sigma_rel(gamma: ArrayLike) -> NDArray[np.float64]:
    """Relative width of the power-function profile with exponent ``gamma`` (Eq. 123).

    Args:
        gamma: Exponent, any shape, each value finite and >= 0.

    Raises:
        ValueError: An exponent is negative or not finite.
    """
    gamma = np.asarray(gamma, dtype=np.float64)
    if not np.all((gamma >= 0) & np.isfinite(gamma)):
        raise ValueError(
            f"gamma must be finite and at least 0, got {gamma}; sigma_rel 0.10 is 6.94"
        )
    return np.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def decay(gamma: ArrayLike, nimg: ArrayLike, stride: ArrayLike) -> NDArray[np.float64]:
    """beta, what the average keeps of itself in the update that ends at ``nimg`` (Eq. 127).

    ``beta = (1 - stride / nimg) ** (gamma + 1)``; the new weights enter with ``1 - beta``. The
    first update (stride = nimg) has beta = 0. Exact for weights that hold still over the stride,
    so any stride, skipped update or change of batch size keeps the profile.

    Args:
        gamma: Exponent >= 0.
        nimg: Training images seen after the update, > 0.
        stride: Images since the previous update, 0 < stride <= nimg.
    """
    nimg, stride = np.asarray(nimg, np.float64), np.asarray(stride, np.float64)
    return np.power((nimg - stride) / nimg, np.asarray(gamma, np.float64) + 1)


def decay_to_half_life(decay: float, batch_size: float) -> float:
    """Images over which an EMA halves that keeps ``decay`` per update: ``-batch / log2(decay)``.

    Raises:
        ValueError: The decay is not between 0 and 1, or the batch size is not positive.
    """
    if not (0 < decay < 1 and batch_size > 0):
        raise ValueError(
            "a constant decay must lie between 0 and 1, and its batch size be positive,"
            f" got {decay} and {batch_size}"
        )
    return -batch_size / float(np.log2(decay))


def inner_product(
    t_a: ArrayLike, gamma_a: ArrayLike, t_b: ArrayLike, gamma_b: ArrayLike
) -> NDArray[np.float64]:
    """Integral of the product of two power-function profiles, per image (Eq. 151); broadcasts.

    For ``t_a <= t_b``: ``(gamma_a+1) (gamma_b+1) (t_a/t_b)**gamma_b / ((gamma_a+gamma_b+1) t_b)``.
    The ratio keeps it finite where powers of image counts would overflow.

    Args:
        t_a, t_b: End of each profile in images, > 0.
        gamma_a, gamma_b: Exponents >= 0.
    """
    t_a, gamma_a, t_b, gamma_b = (np.asarray(v, np.float64) for v in (t_a, gamma_a, t_b, gamma_b))
    ratio = np.minimum(t_a, t_b) / np.maximum(t_a, t_b)
    exponent = np.where(t_a < t_b, gamma_b, gamma_a)
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return scale * ratio**exponent / np.maximum(t_a, t_b)


class Profile(Protocol):
    """An average of a training run up to ``nimg`` images, given by its cumulative weight."""

    @property
    def nimg(self) -> int:
        """End of the profile: it has no weight after this many images."""
        ...

    def cumulative(self, t: NDArray[np.float64]) -> NDArray[np.float64]:
        """Share of the average from before ``t`` images, in [0, 1], non-decreasing; 1 from nimg."""
        ...


@dataclass(frozen=True)
class PowerFunction:
    """The power-function average of Eq. 1, ``P(t) = (t / nimg) ** (gamma + 1)``.

    Attributes:
        gamma: Exponent, >= 0.
        nimg: End of the profile in images, > 0.
    """

    gamma: float
    nimg: int

    def __post_init__(self) -> None:
        gamma_to_sigma_rel(self.gamma)
        _check_nimg(self.nimg)

    @classmethod
    def of_width(cls, sigma_rel: float, nimg: int) -> PowerFunction:
        """The profile of relative width ``sigma_rel``, in (0, 0.2887)."""
        return cls(float(sigma_rel_to_gamma(sigma_rel)), nimg)

    @property
    def sigma_rel(self) -> float:
        """Standard deviation of the profile as a fraction of ``nimg`` (Eq. 123)."""
        return float(gamma_to_sigma_rel(self.gamma))

    @property
    def mean_rel(self) -> float:
        """Mean of the profile / ``nimg``: ``(gamma + 1) / (gamma + 2)`` (Eq. 122)."""
        return (self.gamma + 1) / (self.gamma + 2)

    def cumulative(self, t: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.clip(np.asarray(t, np.float64) / self.nimg, 0, 1) ** (self.gamma + 1)


@dataclass(frozen=True)
class Exponential:
    """The constant-decay EMA, ``P(t) = 2 ** ((t - nimg) / half_life)``.

    It starts from the initial weights, which therefore keep the mass ``2 ** (-nimg / half_life)``.

    Attributes:
        half_life: Images over which the weight of the past halves, > 0.
        nimg: End of the profile in images, > 0.
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

    def cumulative(self, t: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.exp2(np.minimum(np.asarray(t, np.float64) - self.nimg, 0) / self.half_life)


@dataclass(frozen=True)
class Window:
    """The plain mean of the last ``width`` images' weights (stochastic weight averaging, LAWA).

    Attributes:
        width: Images averaged over, 0 < width <= nimg.
        nimg: End of the window in images.
    """

    width: float
    nimg: int

    def __post_init__(self) -> None:
        _check_nimg(self.nimg)
        if not 0 < self.width <= self.nimg:
            raise ValueError(f"width must lie in (0, nimg = {self.nimg}], got {self.width}")

    def cumulative(self, t: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.clip((np.asarray(t, np.float64) - (self.nimg - self.width)) / self.width, 0, 1)


@dataclass(frozen=True)
class Tabulated:
    """Any profile, given as weights of consecutive equal stretches of the run up to ``nimg``.

    Attributes:
        weights: Relative weight of each stretch, oldest first; normalised here to sum 1.
        nimg: End of the last stretch in images.
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

    def cumulative(self, t: NDArray[np.float64]) -> NDArray[np.float64]:
        edges = np.linspace(0, self.nimg, len(self.weights) + 1)
        return np.interp(t, edges, np.concatenate([[0], np.cumsum(self.weights)]))


def _check_nimg(nimg: int) -> None:
    if not nimg > 0:
        raise ValueError(
            f"nimg, the end of the average, must be a positive image count, got {nimg}"
        )
