"""Sampling that begins with an image: filling in a part of it.

Image-to-image needs nothing of its own: begin at the image plus noise of a level in between, and
solve from there (:func:`edm2lite.sampling.levels.sigmas_from`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from edm2lite.sampling.solvers import Denoise, Stepwise, per_step


@dataclass(frozen=True)
class Inpaint:
    """Denoises to ``known`` where ``mask`` is 0, so that sampling ends there exactly.

    There the solution of the ODE is known + sigma * noise at every level: whatever the solver,
    pixels are those of the known image plus the noise that the run began with.

    Attributes:
        denoise: The denoiser that fills in the rest.
        known: [N, C, H, W] images in the space of ``denoise``.
        mask: Values that broadcast to the shape of ``known``: 1 where to fill in.

    Example:
        >>> from edm2lite.sampling import euler, karras_sigmas
        >>> known, mask = torch.full((1, 1, 1, 2), 0.3), torch.tensor([0.0, 1.0])
        >>> sigmas = karras_sigmas(8)
        >>> x = known + float(sigmas[0]) * torch.ones(1, 1, 1, 2)
        >>> euler(Inpaint(lambda x, sigma: 0 * x, known, mask), x, sigmas).flatten()
        tensor([0.3000, 0.0000])
    """

    denoise: Denoise | Stepwise
    known: Tensor
    mask: Tensor

    def per_step(self) -> Iterator[Denoise]:
        """The denoiser of each step; see :class:`edm2lite.sampling.solvers.Stepwise`."""
        return (functools.partial(self._filled, inner) for inner in per_step(self.denoise))

    def _filled(self, denoise: Denoise, x: Tensor, sigma: Tensor) -> Tensor:
        return torch.lerp(self.known, denoise(x, sigma), self.mask.to(x.dtype))
