"""What a network predicts: ``D_x = c_skip x + c_out F(c_in x; c_noise)`` in seven forms.

All denoise x = y + sigma n. They differ in the target of F, with s = sigma_data:

| name     | target of F            | c_skip, c_out                        | embedding |
|----------|------------------------|--------------------------------------|-----------|
| edm      | (y - c_skip x) / c_out | s^2/(sigma^2+s^2), sigma s/sqrt(...) | log       |
| v        | cos(a) n - sin(a) y/s  | the same, -sigma s/sqrt(sigma^2+s^2) | log       |
| epsilon  | n                      | 1, -sigma                            | log       |
| x0       | y / s                  | 0, s                                 | log       |
| flow     | (n - y/s) / sqrt(2)    | s/(sigma+s), -sqrt(2) sigma s/(...)  | time      |
| trigflow | that of v              | those of v                           | angle     |
| sit      | y/s - n                | s/(sigma+s), sigma s/(sigma+s)       | data_time |

where a = atan(sigma / s). Input and target have magnitude 1 at every noise level: c_in is
1/sqrt(sigma^2+s^2), and F of rectified flow is the velocity on y/s, whose variance is 2, divided by
sqrt(2). The exception is sit, for networks that were trained so: rectified flow with the data at
time 1, neither its input z = x/(sigma+s) nor its velocity scaled. Sources: arXiv 2206.00364 (edm),
2202.00512 (v), 2006.11239 (epsilon), 2209.03003 (flow), 2410.11081 (trigflow), 2401.08740 (sit).

Note [sigma = infinity]. There x stands for the noise itself, of standard deviation 1, which is the
limit of x / sigma (see also :mod:`edm2lite.sampling.solvers`). So c_skip and c_in are the limits of
c_skip sigma and c_in sigma, the latter being 1, and c_out is its own limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from edm2lite.diffusion.ddpm import levels

Parametrization = Literal["edm", "v", "epsilon", "x0", "flow", "trigflow", "sit"]
Embedding = Literal["log", "angle", "time", "data_time", "step"]


@dataclass(frozen=True)
class Form:
    """One row of the table above.

    Attributes:
        skip_out: Function of sigma and sigma_data that returns c_skip and c_out at finite levels.
        limits: Limits of ``c_skip sigma`` and ``c_out`` at infinity, divided by sigma_data; None
            if they are infinite.
        embedding: How the network is told the noise level, unless the configuration decides it.

    Example:
        >>> PARAMETRIZATIONS["epsilon"].skip_out(torch.tensor(2.0), 0.5)
        (tensor(1.), tensor(-2.))
    """

    skip_out: Callable[[Tensor, float], tuple[Tensor, Tensor]]
    limits: tuple[float, float] | None
    embedding: Embedding
    c_in: Callable[[Tensor, float], Tensor] = lambda sigma, s: (sigma**2 + s**2).rsqrt()


def _edm(sigma: Tensor, s: float) -> tuple[Tensor, Tensor]:
    total = sigma**2 + s**2
    return s**2 / total, sigma * s * total.rsqrt()


def _v(sigma: Tensor, s: float) -> tuple[Tensor, Tensor]:
    c_skip, c_out = _edm(sigma, s)
    return c_skip, -c_out


def _epsilon(sigma: Tensor, s: float) -> tuple[Tensor, Tensor]:
    return torch.ones_like(sigma), -sigma


def _x0(sigma: Tensor, s: float) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(sigma), torch.full_like(sigma, s)


def _flow(sigma: Tensor, s: float) -> tuple[Tensor, Tensor]:
    return s / (sigma + s), -math.sqrt(2) * s * sigma / (sigma + s)


def _sit(sigma: Tensor, s: float) -> tuple[Tensor, Tensor]:
    return s / (sigma + s), s * sigma / (sigma + s)


PARAMETRIZATIONS: dict[Parametrization, Form] = {
    "edm": Form(_edm, (0.0, 1.0), "log"),
    "v": Form(_v, (0.0, -1.0), "log"),
    "epsilon": Form(_epsilon, None, "log"),
    "x0": Form(_x0, (0.0, 1.0), "log"),
    "flow": Form(_flow, (1.0, -math.sqrt(2)), "time"),
    "trigflow": Form(_v, (0.0, -1.0), "angle"),
    "sit": Form(_sit, (1.0, 1.0), "data_time", lambda sigma, s: 1 / (sigma + s)),
}

with torch.device("cpu"):  # whatever the default is where this module is first imported
    _LOG_STEPS = levels("linear").log()


def _step(sigma: Tensor, s: float) -> Tensor:
    """Number of a level among the 1000 of DDPM, interpolated in ln sigma, 0 to 999."""
    log_sigma, steps = (sigma.double() / s).log(), _LOG_STEPS.to(sigma.device)
    above = torch.searchsorted(steps, log_sigma.contiguous()).clamp(1, len(steps) - 1)
    low, high = steps[above - 1], steps[above]
    return (above - 1 + ((log_sigma - low) / (high - low)).clamp(0, 1)).to(sigma.dtype)


EMBEDDINGS: dict[Embedding, Callable[[Tensor, float], Tensor]] = {
    "log": lambda sigma, s: sigma.log() / 4,
    "angle": lambda sigma, s: torch.atan(sigma / s),
    "time": lambda sigma, s: 1 / (1 + s / sigma),
    "data_time": lambda sigma, s: s / (s + sigma),
    "step": _step,
}
"""c_noise; ``time`` is sigma / (sigma + s), ``data_time`` is 1 minus that, and ``step`` the number
of the level in DDPM's linear schedule, 0 to 999. All but ``log`` are bounded."""


def embedding_of(parametrization: Parametrization, embedding: Embedding | None) -> Embedding:
    """The embedding of a configuration, where None stands for that of the parametrization.

    Example:
        >>> embedding_of("flow", None), embedding_of("flow", "angle")
        ('time', 'angle')
    """
    return embedding or PARAMETRIZATIONS[parametrization].embedding


def infinite_sigma_error(
    parametrization: Parametrization, embedding: Embedding | None
) -> str | None:
    """Why such a network cannot denoise at sigma = infinity, or None if it can.

    Example:
        >>> infinite_sigma_error("trigflow", None) is None
        True
        >>> infinite_sigma_error("v", None)[:41]
        'it is told the noise level as ln(sigma) /'
    """
    if PARAMETRIZATIONS[parametrization].limits is None:
        return (
            f"{parametrization} predicts the noise, which is all that there is to see at sigma ="
            " infinity and says nothing about the image; use v, trigflow, flow, edm or x0"
        )
    if embedding_of(parametrization, embedding) == "log":
        return (
            "it is told the noise level as ln(sigma) / 4, which is infinite there; train it with"
            " net.embedding angle or time"
        )
    return None


@dataclass(frozen=True)
class Scalings:
    """Preconditioning coefficients at some noise levels (Eqs. 5 to 8), each shaped like sigma.

    Attributes:
        c_skip: Factor of the input in the denoised image.
        c_out: Factor of the network's output in the denoised image.
        c_in: Factor of the network's input.
        c_noise: What the network is told of the noise level.

    Example:
        >>> s = Scalings.at(torch.tensor([0.5, 2.0]), sigma_data=0.5)
        >>> s.c_skip
        tensor([0.5000, 0.0588])
    """

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor

    @classmethod
    def at(
        cls,
        sigma: Tensor,
        sigma_data: float,
        parametrization: Parametrization = "edm",
        embedding: Embedding | None = None,
    ) -> Scalings:
        """Coefficients at noise levels above 0; at infinity, see Note [sigma = infinity].

        Where :func:`infinite_sigma_error` returns a reason, c_out or c_noise is infinite or NaN at
        infinity.

        Args:
            sigma: Noise levels, any shape.
            sigma_data: Standard deviation of the data.
            parametrization: What the network predicts.
            embedding: How it is told the noise level. [default: as the parametrization has it]
        """
        form = PARAMETRIZATIONS[parametrization]
        c_noise = EMBEDDINGS[embedding_of(parametrization, embedding)](sigma, sigma_data)
        if form.limits is None or infinite_sigma_error(parametrization, embedding) is not None:
            c_in = form.c_in(sigma, sigma_data)
            return cls(*form.skip_out(sigma, sigma_data), c_in, c_noise)
        # the finite formulas never see infinity: its NaN would reach derivatives
        is_infinite = sigma.isinf()
        finite = torch.where(is_infinite, 1.0, sigma)
        c_skip, c_out = form.skip_out(finite, sigma_data)
        return cls(
            torch.where(is_infinite, form.limits[0] * sigma_data, c_skip),
            torch.where(is_infinite, form.limits[1] * sigma_data, c_out),
            torch.where(is_infinite, 1.0, form.c_in(finite, sigma_data)),
            c_noise,
        )
