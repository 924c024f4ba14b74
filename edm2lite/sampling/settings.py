"""Sampler settings: what decides an image besides the weights, the seed and the conditions."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from edm2lite.dtypes import Dtype, torch_dtype
from edm2lite.sampling.guidance import APG
from edm2lite.sampling.levels import user_sigmas
from edm2lite.sampling.registry import SCHEDULES, SOLVERS
from edm2lite.sampling.solvers import Denoise, Noise, Solver, Stepwise, per_step

SOLVER_OPTIONS = ("S_churn", "S_min", "S_max", "S_noise")
"""Fields that only some solvers take: those that declare them."""

_CHOICES = {"control_guidance": ("both", "main"), "control_weights": ("equal", "resolution")}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampler settings.

    Attributes:
        num_steps: Number of solver steps.
        solver: Name in :data:`edm2lite.sampling.registry.SOLVERS`, or ``module:function`` of a
            solver of yours. ``heun`` calls the network 2 num_steps - 1 times, the others num_steps
            times.
        schedule: Name in :data:`edm2lite.sampling.registry.SCHEDULES`, or ``module:function``.
        sigma_min: Last positive noise level of the schedule.
        sigma_max: First noise level of the schedule.
        sigmas: Noise levels in place of a schedule.
        S_churn, S_min, S_max, S_noise: Noise that is added on the way, see
            :func:`edm2lite.sampling.solvers.heun_steps`.
        guidance: Weight of guidance; 1 is none.
        interval: First and last step that are guided, see
            :class:`edm2lite.sampling.guidance.Guided`; None for all.
        rescale: Share of :class:`edm2lite.sampling.guidance.Rescale`.
        guided_channels: Number of channels that are guided, the first ones; None for all.
        apg: Projection, limit and momentum of the guidance; None for none of them.
        control_guidance: Whether an unconditional guide follows the images of ControlNets too
            (``both``), or the main denoiser alone (``main``), which guides towards them.
        control_weights: ``equal``, or ``resolution`` for angles of ControlNets that are multiplied
            by 1, 2, 4, ... from full resolution downwards.
        size: Height and width of what the network works on: pixels, or latents. None is the square
            that it was trained on.
        dtype: Floating-point type in which the networks compute; None for the one that their files
            state, with float32 in place of float16 on a CPU.
        decoder_dtype: Floating-point type in which an autoencoder decodes; None for float16 on a
            GPU and float32 on a CPU.

    Raises:
        ValueError: If settings are out of range or cannot go together.

    Example:
        >>> sampling = Sampling(num_steps=4, solver="dpmpp_2m")
        >>> sampling.levels()
        tensor([8.0000e+01, 9.7232e+00, 4.6998e-01, 2.0000e-03, 0.0000e+00],
               dtype=torch.float64)
        >>> sampling.changes()
        {'num_steps': 4, 'solver': 'dpmpp_2m'}
    """

    num_steps: int = 32
    solver: str = "heun"
    schedule: str = "karras"
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
    guided_channels: int | None = None
    apg: APG | None = None
    control_guidance: Literal["both", "main"] = "both"
    control_weights: Literal["equal", "resolution"] = "equal"
    size: tuple[int, int] | None = None
    dtype: Dtype | None = None
    decoder_dtype: Dtype | None = None

    def __post_init__(self) -> None:
        self._check_options()
        for dtype in (self.dtype, self.decoder_dtype):
            if dtype is not None:
                torch_dtype(dtype)
        steps = len(self.levels()) - 1
        if self.interval is not None and not 0 <= self.interval[0] <= self.interval[1] < steps:
            first, last = self.interval
            raise ValueError(f"guided steps must lie in 0 to {steps - 1}, got {first} to {last}")
        options = self.interval, self.rescale, self.apg, self.guided_channels
        if self.guidance == 1 and any(options):
            raise ValueError(
                "interval, rescale, APG and guided channels need a weight of guidance other than 1"
            )
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be {' or '.join(choices)}, got {getattr(self, name)!r}"
                )
        if self.guided_channels is not None and self.guided_channels < 1:
            raise ValueError(f"guided_channels must be at least 1, got {self.guided_channels}")

    def _check_options(self) -> None:
        taken, changed = self._solver().options, self.changes()
        unknown = [name for name in taken if name not in SOLVER_OPTIONS]
        if unknown:
            raise ValueError(
                f"solver {self.solver} may declare the options {', '.join(SOLVER_OPTIONS)}, got"
                f" {unknown[0]}; bind others with functools.partial"
            )
        useless = [name for name in SOLVER_OPTIONS if name in changed and name not in taken]
        if useless:
            raise ValueError(
                f"solver {self.solver} takes no {useless[0]}, got {changed[useless[0]]}; leave it"
                " out, or choose a solver that adds noise, such as heun"
            )

    def decoder_dtype_on(self, device: torch.device) -> Dtype:
        """The type in which an autoencoder decodes on a device.

        Args:
            device: Device that decodes.

        Example:
            >>> Sampling().decoder_dtype_on(torch.device("cuda"))
            'float16'
        """
        return self.decoder_dtype or ("float32" if device.type == "cpu" else "float16")

    @property
    def takes_variance(self) -> bool:
        """Whether the solver uses the variance that a network predicts."""
        return self._solver().takes_variance

    def _solver(self) -> Solver:
        found = SOLVERS.find(self.solver)
        return found if isinstance(found, Solver) else Solver(found)

    def levels(self) -> Tensor:
        """[N + 1] float64 noise levels, decreasing, 0 at the end."""
        if self.sigmas is not None:
            return user_sigmas(self.sigmas)
        schedule: Callable[[int, float, float], Tensor] = SCHEDULES.find(self.schedule)
        return user_sigmas(schedule(self.num_steps, self.sigma_min, self.sigma_max).tolist())

    def changes(self) -> dict[str, Any]:
        """The fields that differ from their defaults, as JSON can hold them."""
        values = {f.name: (getattr(self, f.name), f.default) for f in dataclasses.fields(self)}
        return {name: _json_value(v) for name, (v, default) in values.items() if v != default}

    def solve(
        self,
        denoise: Denoise | Stepwise,
        x: Tensor,
        noise: Noise,
        *,
        levels: Tensor | None = None,
        resample: int = 1,
    ) -> Tensor:
        """Solve the ODE from the first noise level to the last.

        Args:
            denoise: The denoiser.
            x: [N, C, H, W], noise at the first level.
            noise: Source of further noise, for solvers that add some on the way.
            levels: Noise levels to solve through. [default: those of :meth:`levels`]
            resample: Number of times that each step is taken; fresh noise goes back up in between.

        Returns:
            [N, C, H, W] images in the space of the denoiser.

        Raises:
            ValueError: If a solver of yours changes the shape.
        """
        levels = self.levels() if levels is None else levels
        if resample == 1:
            return self._solved(denoise, x, levels, noise)
        for denoise_i, (sigma, sigma_next) in zip(
            per_step(denoise), itertools.pairwise(levels), strict=False
        ):
            step = torch.stack([sigma, sigma_next])
            for again in range(resample if sigma.isfinite() else 1):
                if again:
                    x = x + float((sigma.square() - sigma_next.square()).sqrt()) * noise()
                x = self._solved(denoise_i, x, step, noise)
        return x

    def _solved(
        self, denoise: Denoise | Stepwise, x: Tensor, levels: Tensor, noise: Noise
    ) -> Tensor:
        solver = self._solver()
        options: dict[str, Any] = {name: getattr(self, name) for name in solver.options}
        if options.get("S_churn"):  # of the whole run: later steps alone add as much each as in it
            options["S_churn"] *= (len(levels) - 1) / (len(self.levels()) - 1)
        if solver.draws_noise:
            options["noise"] = noise
        solved = solver(denoise, x, levels, **options)
        if solved.shape != x.shape:
            raise ValueError(
                f"solver {self.solver} must return x of shape {list(x.shape)}, got"
                f" {list(solved.shape)}"
            )
        return solved


def _json_value(value: Any) -> Any:
    """A field as JSON can hold it: infinity is text."""
    if isinstance(value, APG):
        return {key: _json_value(part) for key, part in dataclasses.asdict(value).items()}
    if isinstance(value, tuple):
        return [_json_value(part) for part in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value
