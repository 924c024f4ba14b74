"""No guidance, classifier-free guidance and autoguidance on the trees, in numbers and a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edm2lite.network.conditioning import Conditioning
from edm2lite.plotting import figures as plots
from edm2lite.sampling.guidance import Conditioned, Guided
from edm2lite.sampling.levels import first_state, karras_sigmas
from edm2lite.sampling.solvers import Denoise, Stepwise, heun
from edm2lite.toy.density import Mixture
from edm2lite.toy.model import Plan, train

PLANS = {
    "main": Plan(width=64, num_steps=4096),
    "guide": Plan(width=32, num_steps=512, seed=1),
    "unconditional": Plan(width=32, num_steps=1024, num_classes=0, seed=2),
}
SIGMA_MAX = 5.0
ENOUGH = 0.25
"""Of the samples that are due to a branch, for it to be covered: of 16384, the least has 10 due."""


@dataclass(frozen=True)
class Score:
    """Attributes:
    off: Fraction of points where the true density is lower than at 99 of 100 true points.
    covered: Share of the data that is on branches with at least ENOUGH of the points due to them,
        counting those that are not off.
    matched: Sum over branches of the smaller of their true share and their share of those points;
        1 is all of the data, spread over branches as it is.
    """

    off: float
    covered: float
    matched: float


def compare(
    classes: tuple[Mixture, Mixture],
    num: int,
    cfg: float,
    autoguidance: float,
    progress: Callable[[int], object],
    seed: int = 0,
) -> dict[str, Tensor]:
    """Points of the first class: true, unguided, and guided with the weights of each kind.

    Args:
        classes: Densities.
        num: Points of each.
        cfg, autoguidance: Weights of the two kinds of guidance.
        progress: Called with numbers of training steps done, PLANS' sum in all.
        seed: Others train other networks; the samples begin with the same noise.

    Returns:
        Name -> [num, 2].
    """
    plans = {k: dataclasses.replace(p, seed=p.seed + 3 * seed) for k, p in PLANS.items()}
    nets = {name: train(plan, classes, progress) for name, plan in plans.items()}
    labels = torch.zeros(num, dtype=torch.int64)
    told = Conditioning.of(labels)
    main = Conditioned(nets["main"], told)
    denoisers: dict[str, Denoise | Stepwise] = {
        "no guidance": main,
        "classifier-free guidance": Guided(
            main, Conditioned(nets["unconditional"], Conditioning()), cfg
        ),
        "autoguidance": Guided(main, Conditioned(nets["guide"], told), autoguidance),
    }
    generator = torch.Generator().manual_seed(0)
    sigmas = karras_sigmas(32, sigma_max=SIGMA_MAX)
    x = first_state(torch.randn(num, 2, generator=generator), sigmas)
    drawn = {name: heun(denoise, x, sigmas).double() for name, denoise in denoisers.items()}
    return {"truth": classes[0].sample(num, generator), **drawn}


def threshold(mixture: Mixture) -> float:
    """Log density that 99 of 100 true points exceed."""
    points = mixture.sample(50_000, torch.Generator().manual_seed(1))
    return float(log_density(mixture, points).quantile(0.01))


def log_density(mixture: Mixture, x: Tensor) -> Tensor:
    """[N], in pieces that fit in memory."""
    return torch.cat([mixture.log_density(part) for part in x.split(4096)])


def score(mixture: Mixture, x: Tensor, limit: float) -> Score:
    """How well points x [N, 2] stand for the density; ``limit`` is its :func:`threshold`."""
    on = x[log_density(mixture, x) >= limit]
    branches = torch.cat([mixture.branch(part) for part in on.split(4096)])
    share = mixture.branch_weight()
    got = torch.bincount(branches, minlength=len(share)) / len(x)
    covered = share[got >= ENOUGH * share].sum().item()
    return Score(1 - len(on) / len(x), covered, torch.minimum(got, share).sum().item())


def draw(
    path: Path, classes: tuple[Mixture, Mixture], points: Mapping[str, Tensor], limit: float
) -> None:
    """A panel per set of points, over where both densities are high; those off it are blue."""
    mean = torch.cat([mixture.mean for mixture in classes])
    low, high = (mean.min(0).values - 0.16).tolist(), (mean.max(0).values + 0.16).tolist()
    box = (low[0], high[0], low[1], high[1])
    grid_x, grid_y = np.meshgrid(np.linspace(*box[:2], 400), np.linspace(*box[2:], 320))
    grid = torch.from_numpy(np.stack([grid_x.ravel(), grid_y.ravel()], 1))
    first, second = ((log_density(m, grid) >= limit).reshape(grid_x.shape) for m in classes)
    background = torch.maximum(0.14 * first, 0.07 * second).double().numpy()
    panels = {}
    for name, x in points.items():
        result, off = score(classes[0], x, limit), log_density(classes[0], x) < limit
        title = f"{name}\n{100 * result.off:.1f} % off, {100 * result.covered:.0f} % covered"
        panels[title] = (x[~off].numpy(), x[off].numpy())
    plots.plot_points(path, background, box, panels)
