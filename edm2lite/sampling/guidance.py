"""Guidance: denoisers that steer a solver away from what a weaker denoiser would do.

Guidance takes ``D = D_main + (weight - 1) (D_main - D_guide)`` (Eq. 152). The guide decides what it
is: the same class of images from a smaller, less trained or longer averaged network (autoguidance,
arXiv 2406.02507), or images of no class (classifier-free guidance), from an unconditional network
or from the same one without its conditions. All of these are one class, :class:`Guided`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from edm2lite.network.conditioning import Conditioning
from edm2lite.sampling.solvers import Denoise

Network = Callable[[Tensor, Tensor, Conditioning], Tensor]
"""Function of x, sigma and a conditioning that returns D_x, such as a Precond."""


class Conditioned:
    """A network together with what it is told about a batch: ``denoise(x, sigma)``.

    Args:
        net: The network.
        conditioning: What it is told, one row per image; a tensor stands for labels.

    Example:
        >>> def net(x, sigma, conditioning):
        ...     return x * conditioning["label"].reshape(-1, 1, 1, 1)
        >>> denoise = Conditioned(net, torch.tensor([3, 5]))
        >>> denoise(torch.ones(2, 1, 1, 1), torch.tensor(1.0)).flatten()
        tensor([3., 5.])
        >>> denoise.unconditional().conditioning["label"]
        tensor([-1, -1])
    """

    def __init__(
        self, net: Network, conditioning: Conditioning | Mapping[str, Tensor] | Tensor | None = None
    ):
        self.net, self.conditioning = net, Conditioning.of(conditioning)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D_x of x [N, C, H, W] at the scalar level sigma."""
        return self.net(x, sigma, self.conditioning)

    def unconditional(self) -> Conditioned:
        """The same network without its conditions: the guide of classifier-free guidance."""
        return Conditioned(self.net, self.conditioning.unconditional())


@dataclass(frozen=True)
class Mixed:
    """One guide made of two, ``(1 - share) D_first + share D_second``.

    With an unconditional and a weaker conditional denoiser it combines classifier-free guidance of
    weight 1 + (1 - share) (w - 1) with autoguidance of weight 1 + share (w - 1).

    Attributes:
        first: The first guide.
        second: The second guide.
        share: Share of the second guide, 0 to 1.

    Example:
        >>> guide = Mixed(lambda x, sigma: 0 * x, lambda x, sigma: 4 * x, share=0.25)
        >>> guide(torch.ones(2), torch.tensor(1.0))
        tensor([1., 1.])
    """

    first: Denoise
    second: Denoise
    share: float

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D_x of x [N, C, H, W] at the scalar level sigma."""
        return torch.lerp(self.first(x, sigma), self.second(x, sigma), self.share)


@dataclass(frozen=True, kw_only=True)
class Rescale:
    """Pulls the guided prediction's standard deviation back to that of the main one (2305.08891).

    It works per image, in the space of v whatever the network predicts: on ``D - c_skip x``, where
    the factor c_out cancels. In D itself, the noise that it carries along with x would hide how
    much guidance makes it grow.

    Attributes:
        share: Share of the rescaled prediction in the result, in [0, 1]; 0.5 to 0.75 is usual.
        sigma_data: Standard deviation of the data, in
            ``c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)``.

    Example:
        >>> rescale = Rescale(share=1.0)
        >>> x, D_main = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, -1.0]]]])
        >>> rescale(x, torch.tensor(1.0), D_main, D_x=3 * D_main).flatten()
        tensor([ 1., -1.])
    """

    share: float
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"rescale must lie in [0, 1], got {self.share}")

    def __call__(self, x: Tensor, sigma: Tensor, D_main: Tensor, D_x: Tensor) -> Tensor:
        """The guided prediction ``D_x`` with its contrast moved toward that of ``D_main``."""
        kept = self.sigma_data**2 / (sigma**2 + self.sigma_data**2) * x
        dims = tuple(range(1, x.ndim))
        ratio = (D_main - kept).std(dims, keepdim=True) / (D_x - kept).std(dims, keepdim=True)
        return kept + (D_x - kept) * torch.lerp(torch.ones_like(ratio), ratio, self.share)


@dataclass(frozen=True, kw_only=True)
class APG:
    """Adaptive projected guidance (2410.02416): treats ``D_main - D_guide`` before it is added.

    Everything happens in the space of D, in this order: momentum, limit, projection. Momentum runs
    once per step: both evaluations of a Heun step add the sum of the step before, and the first
    one makes the next sum.

    Attributes:
        parallel: Factor eta of the part of the difference along D_main, which saturates colors; 0
            removes it.
        max_norm: Limit r of the L2 norm of the difference, per image.
        momentum: Factor of the sum of the step before; negative, e.g. -0.5, where it is used.

    Example:
        >>> delta, D_main = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]])
        >>> APG(max_norm=2.5)(delta, D_main)  # halved, then without the part along D_main
        tensor([[0., 2.]])
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
    """Guidance of ``main`` away from ``guide``, for a solver.

    Where both are :class:`Conditioned` with the same network, one call computes them together.

    Attributes:
        main: The denoiser to improve.
        guide: A weaker version of it; never called at weight 1, nor outside the interval.
        weight: Weight w of guidance; 1 is no guidance.
        interval: First and last step that are guided, counted from 0; None for all. The decision is
            made once per step and holds for both evaluations of a Heun step (arXiv 2404.07724);
            :func:`interval_steps` finds the steps of given noise levels.
        rescale: Contrast that is taken back afterwards, or None.
        apg: Treatment of the difference before it is added, or None.
        channels: Number of channels that are guided, the first ones; None for all. The released DiT
            was sampled with 3 of 4.

    Example:
        >>> guided = Guided(lambda x, sigma: 2 * x, lambda x, sigma: x, weight=3.0)
        >>> guided(torch.ones(2), torch.tensor(1.0))  # 2 + (3 - 1) (2 - 1)
        tensor([4., 4.])
    """

    main: Denoise
    guide: Denoise
    weight: float
    interval: tuple[int, int] | None = None
    rescale: Rescale | None = None
    apg: APG | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"the weight of guidance must be a finite number, got {self.weight}")
        if self.interval is not None and not 0 <= self.interval[0] <= self.interval[1]:
            raise ValueError(f"an interval must be first and last step, got {self.interval}")

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D_x of a single call, where guidance does not depend on the step.

        Raises:
            ValueError: If there is an interval or momentum.
        """
        if self.interval is not None or (self.apg is not None and self.apg.momentum):
            raise ValueError(
                "guidance within an interval, or with momentum, depends on the step; the solver"
                " must take its denoisers from each_step"
            )
        return next(self.per_step())(x, sigma)

    def per_step(self) -> Iterator[Denoise]:
        """The denoiser of each step; see :class:`edm2lite.sampling.solvers.Stepwise`."""
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
        further = None
        if D_main.shape != x.shape:  # with the variance that a network predicts, which stays
            channels = x.shape[1]
            D_main, further, D_guide = (
                D_main[:, :channels],
                D_main[:, channels:],
                D_guide[:, :channels],
            )
        delta = D_main - D_guide
        if g.channels is not None:
            delta = torch.cat([delta[:, : g.channels], torch.zeros_like(delta[:, g.channels :])], 1)
        if g.apg is not None:
            if self.before is not None:
                delta = delta + g.apg.momentum * self.before
            if self.total is None:
                self.total = delta
            delta = g.apg(delta, D_main)
        D_x = D_main + (g.weight - 1) * delta
        if g.rescale is not None:
            D_x = g.rescale(x, sigma, D_main, D_x)
        return D_x if further is None else torch.cat([D_x, further], 1)


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
