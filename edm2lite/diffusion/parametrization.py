"""What a network predicts: ``D_x = c_skip x + c_out F(c_in x; c_noise)`` in six forms.

All denoise x = y + sigma n. They differ in the target that F is to hit, with s = sigma_data:

| name     | target of F            | c_skip, c_out                        | embedding |
|----------|------------------------|--------------------------------------|-----------|
| edm      | (y - c_skip x) / c_out | s^2/(sigma^2+s^2), sigma s/sqrt(...) | log       |
| v        | cos(a) n - sin(a) y/s  | the same, -sigma s/sqrt(sigma^2+s^2) | log       |
| epsilon  | n                      | 1, -sigma                            | log       |
| x0       | y / s                  | 0, s                                 | log       |
| flow     | (n - y/s) / sqrt(2)    | s/(sigma+s), -sqrt(2) sigma s/(...)  | time      |
| trigflow | that of v              | those of v                           | angle     |

where a = atan(sigma / s). Input and target have magnitude 1 at every noise level: c_in is
1/sqrt(sigma^2+s^2) for all, and F of rectified flow is its velocity on y/s, of variance 2, over
sqrt(2). Sources: arXiv 2206.00364 (edm), 2202.00512 (v), 2006.11239 (epsilon), 2209.03003 (flow),
2410.11081 (trigflow).

Note [sigma = infinity]. There x is the noise itself, of standard deviation 1 (see
:mod:`edm2lite.sampling.solvers`): x / sigma, in the limit. So c_skip and c_in are the limits of
c_skip sigma and c_in sigma, the latter 1, and c_out is its own limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Parametrization = Literal["edm", "v", "epsilon", "x0", "flow", "trigflow"]
Embedding = Literal["log", "angle", "time"]


@dataclass(frozen=True)
class Form:
    """One row of the table above.

    Attributes:
        skip_out: c_skip and c_out at finite noise levels, from sigma and sigma_data.
        limits: Of ``c_skip sigma`` and ``c_out`` at infinity, over sigma_data; None if infinite.
        embedding: How the network is told of the noise level, unless the configuration says.
    """

    skip_out: Callable[[Tensor, float], tuple[Tensor, Tensor]]
    limits: tuple[float, float] | None
    embedding: Embedding


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


PARAMETRIZATIONS: dict[Parametrization, Form] = {
    "edm": Form(_edm, (0.0, 1.0), "log"),
    "v": Form(_v, (0.0, -1.0), "log"),
    "epsilon": Form(_epsilon, None, "log"),
    "x0": Form(_x0, (0.0, 1.0), "log"),
    "flow": Form(_flow, (1.0, -math.sqrt(2)), "time"),
    "trigflow": Form(_v, (0.0, -1.0), "angle"),
}

EMBEDDINGS: dict[Embedding, Callable[[Tensor, float], Tensor]] = {
    "log": lambda sigma, s: sigma.log() / 4,
    "angle": lambda sigma, s: torch.atan(sigma / s),
    "time": lambda sigma, s: 1 / (1 + s / sigma),
}
"""c_noise; ``time`` is sigma / (sigma + s). All but ``log`` are bounded."""


def embedding_of(parametrization: Parametrization, embedding: Embedding | None) -> Embedding:
    """The embedding that a configuration means: the parametrisation's own where it is None."""
    return embedding or PARAMETRIZATIONS[parametrization].embedding


def infinite_sigma_error(
    parametrization: Parametrization, embedding: Embedding | None
) -> str | None:
    """Why such a network cannot denoise at sigma = infinity, or None if it can."""
    if PARAMETRIZATIONS[parametrization].limits is None:
        return (
            f"{parametrization} predicts the noise, which is all that there is to see at sigma ="
            " infinity and says nothing of the image; use v, trigflow, flow, edm or x0"
        )
    if embedding_of(parametrization, embedding) == "log":
        return (
            "it is told the noise level as ln(sigma) / 4, which is infinite there; train it with"
            " net.embedding angle or time"
        )
    return None


@dataclass(frozen=True)
class Scalings:
    """Preconditioning coefficients at some noise levels (Eqs. 5 to 8), each shaped like sigma."""

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
        """At noise levels above 0; infinity as Note [sigma = infinity] has it.

        Where :func:`infinite_sigma_error` has a reason, c_out or c_noise is infinite or NaN there.
        """
        form = PARAMETRIZATIONS[parametrization]
        c_noise = EMBEDDINGS[embedding_of(parametrization, embedding)](sigma, sigma_data)
        if form.limits is None or infinite_sigma_error(parametrization, embedding) is not None:
            c_in = (sigma**2 + sigma_data**2).rsqrt()
            return cls(*form.skip_out(sigma, sigma_data), c_in, c_noise)
        # the finite formulas never see infinity: its NaN would reach derivatives
        is_infinite = sigma.isinf()
        finite = torch.where(is_infinite, 1.0, sigma)
        c_skip, c_out = form.skip_out(finite, sigma_data)
        return cls(
            torch.where(is_infinite, form.limits[0] * sigma_data, c_skip),
            torch.where(is_infinite, form.limits[1] * sigma_data, c_out),
            torch.where(is_infinite, 1.0, (finite**2 + sigma_data**2).rsqrt()),
            c_noise,
        )
