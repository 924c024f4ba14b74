"""Solvers and schedules by name, as settings, commands and pages list them; loads no torch.

A solver or schedule of yours is chosen as ``module:function``. A solver is a function ``(denoise,
x, sigmas) -> x`` or a :class:`edm2lite.sampling.solvers.Solver`; a schedule is a function
``(num_steps, sigma_min, sigma_max) -> sigmas``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edm2lite.kinds import Kinds

if TYPE_CHECKING:
    from torch import Tensor

    from edm2lite.sampling.solvers import Solver, Steps

SOLVERS: Kinds[Solver | Steps] = Kinds(
    "solver",
    {
        "heun": "edm2lite.sampling.solvers:heun",
        "dpmpp_2m": "edm2lite.sampling.solvers:dpmpp_2m",
        "euler": "edm2lite.sampling.solvers:euler",
        "ancestral": "edm2lite.sampling.ancestral:ancestral",
    },
)
"""Solvers of the probability-flow ODE, and DDPM's sampler."""

SCHEDULES: Kinds[Callable[[int, float, float], Tensor]] = Kinds(
    "schedule",
    {
        "karras": "edm2lite.sampling.levels:karras_sigmas",
        "linear": "edm2lite.sampling.levels:linear_sigmas",
        "cosine": "edm2lite.sampling.levels:cosine_sigmas",
        "trailing": "edm2lite.sampling.levels:trailing_sigmas",
        "trailing_scaled_linear": "edm2lite.sampling.levels:trailing_scaled_linear_sigmas",
    },
)
"""Functions that place the noise levels of a run."""
