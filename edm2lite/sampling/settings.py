"""How images are drawn: everything that decides them but the weights, the seed and the class."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from edm2lite.sampling import levels, solvers
from edm2lite.sampling.guidance import APG
from edm2lite.sampling.solvers import Denoise, Noise, Stepwise

SOLVERS: dict[str, Callable[..., Tensor]] = {
    "heun": solvers.heun,
    "euler": solvers.euler,
    "dpmpp_2m": solvers.dpmpp_2m,
}
SCHEDULES: dict[str, Callable[[int, float, float], Tensor]] = {
    "karras": levels.karras_sigmas,
    "linear": levels.linear_sigmas,
    "cosine": levels.cosine_sigmas,
}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Everything that decides what an image is, next to its seed, its class and the weights.

    Attributes:
        num_steps: Of the solver.
        solver: ``heun`` calls the network 2 * num_steps - 1 times, the others num_steps times.
        schedule, sigma_min, sigma_max: Noise levels, see :mod:`edm2lite.sampling.solvers`.
        sigmas: Noise levels in place of a schedule.
        S_churn, S_min, S_max, S_noise: See :func:`edm2lite.sampling.solvers.heun_steps`.
        guidance, interval: Weight and steps of :class:`edm2lite.sampling.guidance.Guided`.
        rescale: Share of :class:`edm2lite.sampling.guidance.Rescale`.
        apg: Projected guidance.
        size: Height and width of what the network works on, for latents not of the image; None for
            the square that it was trained on.
        dtype: In which the networks compute; None for what their files say.
    """

    num_steps: int = 32
    solver: Literal["heun", "euler", "dpmpp_2m"] = "heun"
    schedule: Literal["karras", "linear", "cosine"] = "karras"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigmas: tuple[float, ...] | None = None
    S_churn: float = 0.0
    S_min: float = 0.0
    S_max: float = math.inf
    S_noise: float = 1.0
    guidance: float = 1.0
    interval: tuple[int, int] | None = None
    rescale: float = 0.0
    apg: APG | None = None
    size: tuple[int, int] | None = None
    dtype: Literal["float32", "float16", "bfloat16"] | None = None

    def __post_init__(self) -> None:
        if self.S_churn and self.solver != "heun":
            raise ValueError(f"churn is part of heun, got solver {self.solver}")
        steps = len(self.levels()) - 1
        if self.interval is not None and not 0 <= self.interval[0] <= self.interval[1] < steps:
            first, last = self.interval
            raise ValueError(f"guided steps must lie in 0 to {steps - 1}, got {first} to {last}")
        if self.guidance == 1 and (self.interval or self.rescale or self.apg):
            raise ValueError("interval, rescale and APG need a weight of guidance other than 1")

    def levels(self) -> Tensor:
        """[N + 1] float64 noise levels."""
        if self.sigmas is not None:
            return levels.user_sigmas(self.sigmas)
        return SCHEDULES[self.schedule](self.num_steps, self.sigma_min, self.sigma_max)

    def changes(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON can hold it."""
        changed = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if value != f.default:
                changed[f.name] = _plain(value)
        return changed

    def solve(self, denoise: Denoise | Stepwise, x: Tensor, noise: Noise) -> Tensor:
        """Images from x, noise at the first level."""
        churn: dict[str, Any] = {}
        if self.S_churn:
            names = ("S_churn", "S_min", "S_max", "S_noise")
            churn = {"noise": noise, **{name: getattr(self, name) for name in names}}
        return SOLVERS[self.solver](denoise, x, self.levels(), **churn)


def _plain(value: Any) -> Any:
    """As JSON can hold it."""
    if isinstance(value, APG):
        return {key: _plain(part) for key, part in dataclasses.asdict(value).items()}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value
