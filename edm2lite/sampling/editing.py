"""Denoisers for sampling that begins with an image: a part filled in, or later steps alone."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
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


@dataclass(frozen=True)
class LaterSteps:
    """A denoiser for a run that begins at a later step, with what guidance does from that step on.

    Attributes:
        denoise: The denoiser of the whole run.
        first: Number of steps that are left out.

    Example:
        >>> later = LaterSteps(lambda x, sigma: 0 * x, first=3)
        >>> next(later.per_step())(torch.ones(1), torch.tensor(1.0))
        tensor([0.])
    """

    denoise: Denoise | Stepwise
    first: int

    def per_step(self) -> Iterator[Denoise]:
        """The denoiser of each step; see :class:`edm2lite.sampling.solvers.Stepwise`."""
        return itertools.islice(per_step(self.denoise), self.first, None)


def coarse_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask of pixels on the grid of what the network works on: a place is filled if a pixel is.

    Args:
        mask: [N, 1, H, W] bool.
        size: Height and width of the grid, which divide those of the mask.

    Returns:
        [N, 1, h, w] float32.

    Example:
        >>> coarse_mask(torch.tensor([[[[0, 0, 0, 1]]]], dtype=torch.bool), (1, 2))
        tensor([[[[0., 1.]]]])
    """
    height, width = mask.shape[2] // size[0], mask.shape[3] // size[1]
    return F.max_pool2d(mask.float(), (height, width))
