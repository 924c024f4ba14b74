"""Sampling without guidance, with classifier-free guidance and with autoguidance, and its scores.

The true density is known, so every sample can be judged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from edm2lite.network.conditioning import Conditioning
from edm2lite.sampling.guidance import Conditioned, Guided
from edm2lite.sampling.levels import first_state, karras_sigmas
from edm2lite.sampling.solvers import Denoise, Stepwise, heun
from edm2lite.toy.density import Mixture
from edm2lite.toy.model import ToyConfig, train

NETWORKS = {
    "main": ToyConfig(width=64, num_steps=4096),
    "guide": ToyConfig(width=32, num_steps=512, seed=1),
    "unconditional": ToyConfig(width=32, num_steps=1024, num_classes=0, seed=2),
}
SIGMA_MAX = 5.0
COVERED = 0.25
"""A branch is covered if it gets this fraction of the samples that its weight entitles it to.

Of 16384 samples, the lightest branch is entitled to 10.
"""


@dataclass(frozen=True)
class Score:
    """How well samples represent a density.

    Attributes:
        off: Fraction of samples where the true density is lower than at 99 of 100 true points.
        covered: Share of the data that lies on covered branches, see ``COVERED``. Samples that are
            off do not count for any branch.
        matched: Sum over branches of the smaller of their share of the data and their share of the
            samples that are not off; 1 if samples spread over the branches as the data do.
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
    """Points of the first class: from the density, sampled without and with guidance.

    Args:
        classes: Densities of the two classes.
        num: Number of points of each kind.
        cfg: Weight of classifier-free guidance.
        autoguidance: Weight of autoguidance.
        progress: Called with the number of training steps that have been done since the last
            call; the networks of ``NETWORKS`` are trained.
        seed: Seed of the training of the networks. The noise from which samples start is always
            the same.

    Returns:
        Name of each kind -> points [num, 2] float64.
    """
    configs = {k: dataclasses.replace(c, seed=c.seed + 3 * seed) for k, c in NETWORKS.items()}
    nets = {name: train(config, classes, progress) for name, config in configs.items()}
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
    """The log density that 99 of 100 points of the mixture exceed, estimated from 50 000 points."""
    points = mixture.sample(50_000, torch.Generator().manual_seed(1))
    return float(log_density(mixture, points).quantile(0.01))


def log_density(mixture: Mixture, x: Tensor) -> Tensor:
    """Log density of x [N, 2], [N], computed in pieces of bounded memory."""
    return torch.cat([mixture.log_density(part) for part in torch.split(x, 4096)])


def score(mixture: Mixture, x: Tensor, limit: float) -> Score:
    """How well samples represent a density.

    Args:
        mixture: The density.
        x: [N, 2] samples.
        limit: Log density that separates samples on the data from those off it, from
            :func:`threshold`.

    Example:
        >>> from edm2lite.toy.density import two_trees
        >>> mixture = two_trees()[0]
        >>> truth = mixture.sample(500, torch.Generator().manual_seed(0))
        >>> limit = log_density(mixture, truth).quantile(0.01).item()
        >>> noise = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        >>> score(mixture, truth, limit).off < 0.02 < 0.5 < score(mixture, noise, limit).off
        True
    """
    on = x[log_density(mixture, x) >= limit]
    branches = torch.cat([mixture.branch(part) for part in torch.split(on, 4096)])
    share = mixture.branch_weight()
    got = torch.bincount(branches, minlength=len(share)) / len(x)
    covered = share[got >= COVERED * share].sum().item()
    return Score(1 - len(on) / len(x), covered, torch.minimum(got, share).sum().item())
