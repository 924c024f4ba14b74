"""Decays of the learning rate as averages: each named decay by its cumulative weight.

An average of the weights of a run is, to first order, the end of another run, whose updates at time
t were multiplied by ``w(t) = 1 - P(t)``: an update of time t is contained in all weights of later
times. So the average that emulates a schedule has the cumulative weight ``P = 1 - w``. A decay over
the last D images multiplies by 1 until it begins. With s = 0 at its beginning and 1 at its end:

    name       multiplier w(s)        weight P(s)       mean, deviation of the age, as shares of D
    linear     1 - s                  s                 1/2          0.289
    cosine     (1 + cos(pi s)) / 2    sin(pi s / 2)**2  1/2          0.218
    1-sqrt     1 - sqrt(s)            sqrt(s)           2/3          0.298
    square     (1 - s)**2             s (2 - s)         2/3          0.236
    1-square   1 - s**2               s**2              1/3          0.236
    power:K    (1 - s)**K             1 - (1 - s)**K    K / (K + 1)

NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edm2lite.units import parse_amount, parse_floats

Array = NDArray[np.float64]

_ALIASES = {"(1-s)^2": "square", "(1-s)**2": "square", "1-s^2": "1-square", "1-s**2": "1-square"}
_POWERS = (0.5, 16.0)  # range of K
_NO_UNIT = 100  # from here on, a number without a unit is a number of images
_EXAMPLES = "as in linear:0.2, cosine:20%, 1-sqrt:4Mi or power:3:0.2"


@dataclass(frozen=True)
class DecayShape:
    """The shape of a decay, whatever its length.

    Attributes:
        name: linear, cosine, 1-sqrt, square, 1-square or power.
        power: K of ``power``, from 0.5 to 16; 1 for the others.

    Raises:
        ValueError: If there is no such shape, or the power is out of range.

    Example:
        >>> DecayShape("power", 3).cumulative([0, 0.5, 1])
        array([0.   , 0.875, 1.   ])
        >>> DecayShape("cosine").mean_age
        0.5
    """

    name: str
    power: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in _CUMULATIVE:
            raise ValueError(
                f"a decay must be one of {', '.join(SHAPES)}, got {self.name!r}; write {_EXAMPLES}"
            )
        low, high = _POWERS if self.name == "power" else (1, 1)
        if not low <= self.power <= high:
            raise ValueError(
                f"the power of a decay must lie between {low:g} and {high:g}, got {self.power:g}"
            )

    def __str__(self) -> str:
        return f"power:{self.power:.12g}" if self.name == "power" else self.name

    def cumulative(self, s: ArrayLike) -> Array:
        """Weight P of what is before the share s of the decay; s is limited to [0, 1]."""
        return _CUMULATIVE[self.name](np.clip(np.asarray(s, np.float64), 0, 1), self.power)

    @property
    def has_square(self) -> bool:
        """Whether the square of the density has an integral."""
        return self.name != "1-sqrt" and not (self.name == "power" and self.power <= 0.5)

    @property
    def mean_age(self) -> float:
        """Mean age of the weights at the end of the decay, as a share of its length."""
        return _ages(self)[0]

    @property
    def deviation(self) -> float:
        """Standard deviation of the age of the weights, as a share of the length of the decay."""
        return _ages(self)[1]

    @property
    def median_age(self) -> float:
        """Age that half of the weight is below, as a share of the length of the decay."""
        return _ages(self)[2]


@dataclass(frozen=True)
class Decay:
    """The average that emulates a decay of the learning rate over the last images of a run.

    Attributes:
        shape: Shape of the decay.
        width: Length of the decay in images, 0 < width <= nimg.
        nimg: End of the decay in images.

    Raises:
        ValueError: If ``width`` or ``nimg`` is out of range.

    Example:
        >>> decay = Decay(DecayShape("cosine"), width=1000, nimg=4000)
        >>> 1 - decay.cumulative([2000, 3000, 3500, 4000])  # multiplier of the learning rate
        array([1. , 1. , 0.5, 0. ])
    """

    shape: DecayShape
    width: float
    nimg: int

    def __post_init__(self) -> None:
        if not 0 < self.width <= self.nimg:
            raise ValueError(
                "a decay must have a positive length and begin within the run, which has"
                f" {self.nimg} images by its end, got a length of {self.width:g} images"
            )

    @property
    def start(self) -> float:
        """Beginning of the decay in images."""
        return self.nimg - self.width

    @property
    def kinks(self) -> tuple[float, ...]:
        """Times at which the weight is not smooth, and steps towards those where it is steep."""
        near = self.width * 4.0 ** -np.arange(1, 10)
        is_steep = self.shape.name == "1-sqrt", self.shape.name == "power" and self.shape.power < 1
        times = [self.start]
        times += [*(self.start + near)] if is_steep[0] else []
        times += [*(self.nimg - near)] if is_steep[1] else []
        return tuple(float(t) for t in times if t > 0)

    def cumulative(self, t: ArrayLike) -> Array:
        """Share of the average that comes from before ``t`` images."""
        return self.shape.cumulative((np.asarray(t, np.float64) - self.start) / self.width)

    def __str__(self) -> str:
        return f"{self.shape}:{_images(self.width)}"


@dataclass(frozen=True)
class NamedDecay:
    """A decay by its name: its shape, and its length as a share of the run or in images.

    Attributes:
        shape: Shape of the decay.
        length: Length, as a share of the run in (0, 1] or in images.
        in_images: Whether the length is in images.

    Example:
        >>> decay = NamedDecay.parse("(1-s)^2:20%")
        >>> str(decay), decay.at(64_000).width
        ('square:0.2', 12800.0)
        >>> str(NamedDecay.parse("power:3:4Mi"))
        'power:3:4194304'
    """

    shape: DecayShape
    length: float
    in_images: bool = False

    @classmethod
    def parse(cls, text: str) -> NamedDecay:
        """The decay that is written as NAME:LENGTH, or power:K:LENGTH.

        Args:
            text: A name of :data:`SHAPES`, and a length: a share of the run as ``0.2`` or ``20%``,
                or images as ``4Mi``, ``500k`` or ``250000``.

        Raises:
            ValueError: If the text has another form, or a number is out of range.
        """
        shape, rest = _shape(text)
        if len(rest) != 1:
            raise ValueError(f"{text!r} must be the name of a decay and its length, {_EXAMPLES}")
        length, in_images = _length(rest[0], text)
        return cls(shape, length, in_images)

    def at(self, nimg: int) -> Decay:
        """The average that emulates the decay with its end at ``nimg`` images."""
        return Decay(self.shape, self.length if self.in_images else self.length * nimg, nimg)

    def __str__(self) -> str:
        return f"{self.shape}:{_images(self.length) if self.in_images else f'{self.length!r}'}"


def parse_decays(text: str) -> list[str]:
    """The names in a list such as ``linear:0.2,cosine:0.05:0.25:0.05``, in their usual form.

    Lengths that are shares of the run may be ranges ``start:end:step``.

    Args:
        text: Names of decays separated by commas.

    Raises:
        ValueError: If a part is not a decay.

    Example:
        >>> parse_decays("(1-s)^2:20%,linear:0.1:0.2:0.05")
        ['square:0.2', 'linear:0.1', 'linear:0.15', 'linear:0.2']
    """
    names: list[str] = []
    for part in text.split(","):
        shape, rest = _shape(part)
        lengths = [":".join(rest)]
        if len(rest) == 3:
            lengths = [repr(x) for x in parse_floats(lengths[0])]
        names += [str(NamedDecay.parse(f"{shape}:{x}")) for x in lengths]
    return list(dict.fromkeys(names))


def _shape(text: str) -> tuple[DecayShape, list[str]]:
    """The shape at the beginning of a name, and the parts that follow it."""
    name, *rest = text.strip().split(":")
    if len(text) > 80:
        raise ValueError(f"{text[:40]!r}... must be the name of a decay, {_EXAMPLES}")
    if name != "power":
        return DecayShape(_ALIASES.get(name, name)), rest
    try:
        power = float(rest[0])
    except (IndexError, ValueError):
        raise ValueError(f"{text!r} must be power:K:LENGTH, as in power:3:0.2") from None
    return DecayShape(name, power), rest[1:]


def _length(written: str, text: str) -> tuple[float, bool]:
    """A length as a share or in images, and whether it is in images."""
    is_percent = written.endswith("%")
    try:
        value = parse_amount(written.removesuffix("%"))
    except ValueError:
        raise ValueError(f"{text!r} must end in the length of a decay, {_EXAMPLES}") from None
    if is_percent or (value <= 1 and written[-1].isdigit()):
        value = value / 100 if is_percent else value
        if value > 1:
            raise ValueError(f"{text!r} must be at most the whole run, 100%")
        return value, False
    if written[-1].isdigit() and value < _NO_UNIT:
        raise ValueError(
            f"{text!r} could be {value:g} % or {value:g} images; write {value:g}% or"
            f" {value / 1000:g}k"
        )
    return value, True


def _images(value: float) -> str:
    """A number of images in a form that :meth:`NamedDecay.parse` reads as such."""
    if value < _NO_UNIT:
        return f"{value / 1000!r}k"
    return f"{int(value)}" if value == int(value) else repr(value)


def _power(s: Array, power: float) -> Array:
    with np.errstate(divide="ignore"):  # the logarithm of 0 at the end
        weight: Array = -np.expm1(power * np.log1p(-s))
    return weight


def _cosine(s: Array, power: float) -> Array:
    weight: Array = np.sin(0.5 * np.pi * s) ** 2
    return weight


_CUMULATIVE: dict[str, Callable[[Array, float], Array]] = {
    "linear": lambda s, power: s,
    "cosine": _cosine,
    "1-sqrt": lambda s, power: np.sqrt(s),
    "square": lambda s, power: s * (2 - s),
    "1-square": lambda s, power: s**2,
    "power": _power,
}
SHAPES = tuple(_CUMULATIVE)
"""Names of the shapes."""


def _ages(shape: DecayShape) -> tuple[float, float, float]:
    """Mean, standard deviation and median of the age, as shares of the length of the decay.

    The share s has a Beta distribution in all shapes but the cosine, of the density
    ``pi / 2 sin(pi s)``.
    """
    k = shape.power
    return {
        "linear": (1 / 2, 12**-0.5, 1 / 2),
        "cosine": (1 / 2, math.sqrt(1 / 4 - 2 / math.pi**2), 1 / 2),
        "1-sqrt": (2 / 3, math.sqrt(4 / 45), 3 / 4),
        "square": (2 / 3, 18**-0.5, 0.5**0.5),
        "1-square": (1 / 3, 18**-0.5, 1 - 0.5**0.5),
        "power": (k / (k + 1), math.sqrt(k / (k + 2)) / (k + 1), 0.5 ** (1 / k)),
    }[shape.name]
