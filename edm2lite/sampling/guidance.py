"""What a sampler is steered by: a weaker denoiser to move away from, or pixels to keep.

Guidance takes ``D = D_main + (weight - 1) (D_main - D_guide)`` (Eq. 152). The guide decides what it
is: the same class of images from a smaller, less trained or longer averaged network (autoguidance,
arXiv 2406.02507), or images of no class (classifier-free guidance), from an unconditional network
or from the same one without its labels. All of these are the same class, :class:`Guided`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from edm2lite.network.conditioning import Conditioning
from edm2lite.sampling.solvers import Denoise, Stepwise, per_step

Network = Callable[[Tensor, Tensor, Conditioning], Tensor]


@dataclass(frozen=True)
class Conditioned:
    """A network with what it is told about a batch: ``denoise(x, sigma)``."""

    net: Network
    conditioning: Conditioning

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D_x of x [N, C, H, W] at the scalar level sigma."""
        return self.net(x, sigma, self.conditioning)

    def unconditional(self) -> Conditioned:
        """The same network without its condition: the guide of classifier-free guidance."""
        return Conditioned(self.net, self.conditioning.unconditional())


@dataclass(frozen=True)
class Mixed:
    """One guide of two, ``(1 - share) D_first + share D_second``.

    With an unconditional and a weaker conditional denoiser it combines classifier-free guidance of
    weight 1 + (1 - share) (w - 1) with autoguidance of weight 1 + share (w - 1).
    """

    first: Denoise
    second: Denoise
    share: float

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return torch.lerp(self.first(x, sigma), self.second(x, sigma), self.share)


@dataclass(frozen=True, kw_only=True)
class Rescale:
    """Pulls the guided prediction's standard deviation back to that of the main one (2305.08891).

    Per image, and in the space of v whatever the network predicts: of ``D - c_skip x``, whose
    factor c_out cancels. Noise that D carries along with x would hide the growth in that of D.

    Attributes:
        share: Of the rescaled prediction in the result, in [0, 1]; 0.5 to 0.75 is usual.
        sigma_data: In ``c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)``.
    """

    share: float
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"rescale must lie in [0, 1], got {self.share}")

    def __call__(self, x: Tensor, sigma: Tensor, D_main: Tensor, D_x: Tensor) -> Tensor:
        kept = self.sigma_data**2 / (sigma**2 + self.sigma_data**2) * x
        dims = tuple(range(1, x.ndim))
        ratio = (D_main - kept).std(dims, keepdim=True) / (D_x - kept).std(dims, keepdim=True)
        return kept + (D_x - kept) * torch.lerp(torch.ones_like(ratio), ratio, self.share)


@dataclass(frozen=True, kw_only=True)
class APG:
    """Adaptive projected guidance (2410.02416): treats ``D_main - D_guide`` before it is added.

    All in the space of D. In order: momentum, limit, projection. Momentum runs once per step: both
    evaluations of a Heun step add the sum of the step before, and the first one makes the next sum.

    Attributes:
        parallel: Factor eta of the difference's part along D_main, which saturates; 0 removes it.
        max_norm: Limit r of its L2 norm, per image.
        momentum: Factor of the sum of the step before; negative, e.g. -0.5, where it is used.
    """

    parallel: float = 0.0
    max_norm: float = math.inf
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not self.max_norm > 0:
            raise ValueError(f"the limit of APG must be positive, got {self.max_norm}")
        if not -1 < self.momentum < 1:
            raise ValueError(f"the momentum of APG must lie in (-1, 1), got {self.momentum}")

    def __call__(self, delta: Tensor, D_main: Tensor) -> Tensor:
        """The difference, limited and projected."""
        dims = tuple(range(1, delta.ndim))
        if self.max_norm < math.inf:
            norm = delta.square().sum(dims, keepdim=True).sqrt()
            delta = delta * (self.max_norm / norm).clamp(max=1)
        size = D_main.square().sum(dims, keepdim=True)
        along = (delta * D_main).sum(dims, keepdim=True) / size.clamp_min(1e-30) * D_main
        return delta + (self.parallel - 1) * along


@dataclass(frozen=True)
class Guided:
    """Guidance of ``main`` away from ``guide``, for a sampler.

    Where both are :class:`Conditioned` with the same network, one call computes them together.

    Attributes:
        main: What is to be improved.
        guide: Its weaker version; never called at weight 1, nor outside the interval.
        weight: w; 1 is no guidance.
        interval: First and last step that are guided, counted from 0; None for all. The decision is
            made once per step and holds for both evaluations of a Heun step (arXiv 2404.07724);
            :func:`interval_steps` finds the steps of given noise levels.
        rescale, apg: Treatments of what guidance adds, see there.
    """

    main: Denoise
    guide: Denoise
    weight: float
    interval: tuple[int, int] | None = None
    rescale: Rescale | None = None
    apg: APG | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"the weight of guidance must be a finite number, got {self.weight}")
        if self.interval is not None and not 0 <= self.interval[0] <= self.interval[1]:
            raise ValueError(f"an interval must be first and last step, got {self.interval}")

    def per_step(self) -> Iterator[Denoise]:
        """As :class:`edm2lite.sampling.solvers.Stepwise` has it."""
        first, last = self.interval if self.interval is not None else (0, math.inf)
        before: Tensor | None = None
        for i in itertools.count():
            if self.weight == 1 or not first <= i <= last:
                yield self.main
            else:
                step = _GuidedStep(self, before)
                yield step
                before = step.total


@dataclass
class _GuidedStep:
    """The guided denoiser of one step."""

    guided: Guided
    before: Tensor | None
    total: Tensor | None = field(default=None, init=False)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        g = self.guided
        D_main, D_guide = _both(g.main, g.guide, x, sigma)
        delta = D_main - D_guide
        if g.apg is not None:
            if self.before is not None:
                delta = delta + g.apg.momentum * self.before
            if self.total is None:
                self.total = delta
            delta = g.apg(delta, D_main)
        D_x = D_main + (g.weight - 1) * delta
        return D_x if g.rescale is None else g.rescale(x, sigma, D_main, D_x)


def _both(main: Denoise, guide: Denoise, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    if (
        isinstance(main, Conditioned)
        and isinstance(guide, Conditioned)
        and main.net is guide.net
        and set(main.conditioning) == set(guide.conditioning)
    ):
        told = Conditioning.cat([main.conditioning, guide.conditioning])
        D_main, D_guide = main.net(torch.cat([x, x]), sigma, told).chunk(2)
        return D_main, D_guide
    return main(x, sigma), guide(x, sigma)


def interval_steps(sigmas: Tensor, low: float, high: float) -> tuple[int, int]:
    """First and last step of the interval (low, high] of noise levels, for :class:`Guided`.

    An interval can begin and end at the levels of the sampler only. Both bounds are therefore
    moved to the nearest one (by ratio): (0.28, 2.90] as papers print it, rounded, is (0.28304,
    2.90153] and means steps 15 to 21 of 32; comparing levels with the printed numbers would guide
    steps 16 to 22.

    Args:
        sigmas: [N + 1] levels of the sampler.
        low: Lower bound, at least 0, exclusive.
        high: Upper bound, inclusive; may be infinite.

    Raises:
        ValueError: Bounds out of order, or both nearest to the same level.
    """
    if not 0 <= low < high:
        raise ValueError(f"an interval must be low,high with 0 <= low < high, got {low:g},{high:g}")
    first, end = _nearest(sigmas, high), _nearest(sigmas, low)
    if first >= end:
        raise ValueError(
            f"the interval ({low:g}, {high:g}] must hold a step, but both ends are nearest to the"
            f" noise level {float(sigmas[first]):.4g}; widen it or take more steps"
        )
    return first, end - 1


def _nearest(sigmas: Tensor, level: float) -> int:
    if level == 0:
        return len(sigmas) - 1
    if math.isinf(level):
        return 0
    return int((sigmas.double() / level).log().abs().argmin())


@dataclass(frozen=True)
class Inpaint:
    """Denoises to ``known`` where ``mask`` is 0, so that sampling ends there exactly.

    The ODE's solution there is known + sigma * noise at every level: whatever the sampler, pixels
    are replaced by noised known ones, always with the noise that the run began with.

    Attributes:
        denoise: What fills in the rest.
        known: [N, C, H, W] images in the space of ``denoise``.
        mask: Broadcasts to their shape: 1 where to fill in.
    """

    denoise: Denoise | Stepwise
    known: Tensor
    mask: Tensor

    def per_step(self) -> Iterator[Denoise]:
        """As :class:`edm2lite.sampling.solvers.Stepwise` has it."""
        return (functools.partial(self._filled, inner) for inner in per_step(self.denoise))

    def _filled(self, denoise: Denoise, x: Tensor, sigma: Tensor) -> Tensor:
        return torch.lerp(self.known, denoise(x, sigma), self.mask.to(x.dtype))
