"""A density in the plane that is known in closed form: two trees, one per class.

A branch is a row of Gaussians along a line. At its end it splits into two branches that are
thinner, shorter and of less weight, six times in succession. Both trees grow from the same root, as
classes of images have much in common, and their twigs are finer than a small network can follow:
that is where it makes errors. Densities and ideal denoisers are sums over Gaussians, in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LEVELS = 7
BRANCHES = 2**LEVELS - 1
PER_BRANCH = 8
SIGMA_DATA = 0.5

_MASS = 0.75  # weight of all branches of a level, relative to the level that they grow from
_WIDTH = 0.13  # standard deviation across a branch, relative to its length
_SHRINK = (0.72, 0.84)  # range of a branch's length, relative to its parent
_SPLIT = (0.4, 0.7)  # range of the angle between a branch and its parent, in radians


@dataclass(frozen=True)
class Mixture:
    """A mixture of K Gaussians in the plane.

    Attributes:
        weight: [K] float64, sums to 1. The Gaussians of a branch are consecutive.
        mean: [K, 2] float64.
        axes: [K, 2, 2] float64, the unit vectors along and across the branch.
        variance: [K, 2] float64, along and across the branch.

    Example:
        >>> mixture = two_trees()[0]
        >>> x = mixture.sample(1000, torch.Generator().manual_seed(0))
        >>> x.shape, mixture.log_density(x).shape
        (torch.Size([1000, 2]), torch.Size([1000]))
        >>> torch.allclose(mixture.denoise(x, sigma=1e-6), x, atol=1e-6)
        True
    """

    weight: Tensor
    mean: Tensor
    axes: Tensor
    variance: Tensor

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """``num`` independent points, [num, 2] float64."""
        k = torch.multinomial(self.weight, num, replacement=True, generator=generator)
        z = torch.randn(num, 2, generator=generator, dtype=torch.float64) * self.variance[k].sqrt()
        return self.mean[k] + torch.einsum("na,nad->nd", z, self.axes[k])

    def log_density(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """Log density of data plus noise of standard deviation ``sigma``, at x [N, 2]: [N]."""
        return self._log_terms(x, sigma).logsumexp(1)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """The ideal denoiser: mean of the data given data plus noise x [N, 2]; [N, 2]."""
        share = self._log_terms(x, sigma).softmax(1)
        kept = self._quadratic(self.variance / (self.variance + sigma**2))  # share of x - mean
        offset = self.mean - torch.einsum("kde,ke->kd", kept, self.mean)
        matrix = (share @ kept.flatten(1)).reshape(-1, 2, 2)
        moved: Tensor = torch.einsum("nde,ne->nd", matrix, x.double())
        return moved + share @ offset

    def branch(self, x: Tensor) -> Tensor:
        """Index of the branch that each point of x [N, 2] most likely belongs to, [N] int64."""
        terms = self._log_terms(x, 0.0)
        return terms.reshape(len(x), -1, PER_BRANCH).logsumexp(2).argmax(1)

    def branch_weight(self) -> Tensor:
        """Weight of each branch, [BRANCHES], sums to 1."""
        return self.weight.reshape(-1, PER_BRANCH).sum(1)

    def moved(self, shift: Tensor, scale: float) -> Mixture:
        """The density of ``(x - shift) * scale``."""
        mean = (self.mean - shift) * scale
        return Mixture(self.weight, mean, self.axes, self.variance * scale**2)

    def spread(self) -> Tensor:
        """Variance of each Gaussian along x and along y, [K, 2]."""
        return self._quadratic(self.variance).diagonal(dim1=1, dim2=2)

    def _quadratic(self, diagonal: Tensor) -> Tensor:
        """[K, 2, 2] symmetric matrices with ``diagonal`` [K, 2] in the axes of each Gaussian."""
        return torch.einsum("kad,ka,kae->kde", self.axes, diagonal, self.axes)

    def _log_terms(self, x: Tensor, sigma: float) -> Tensor:
        """[N, K]: log of each Gaussian's term in the density of x, by one matrix product."""
        variance = self.variance + sigma**2
        inverse = self._quadratic(1 / variance)
        linear = torch.einsum("kde,ke->kd", inverse, self.mean)
        constant = self.weight.log() - variance.log().sum(1) / 2 - math.log(2 * math.pi)
        constant = constant - (linear * self.mean).sum(1) / 2
        factors = torch.stack(
            [-inverse[:, 0, 0] / 2, -inverse[:, 0, 1], -inverse[:, 1, 1] / 2, *linear.T, constant]
        )
        u, v = x.double().unbind(1)
        return torch.stack([u * u, u * v, v * v, u, v, torch.ones_like(u)], 1) @ factors


def two_trees() -> tuple[Mixture, Mixture]:
    """The densities of the two classes.

    Samples of both, in equal numbers, have mean 0 and standard deviation ``SIGMA_DATA``.

    Example:
        >>> first, second = two_trees()
        >>> first.weight.shape, BRANCHES * PER_BRANCH
        (torch.Size([1016]), 1016)
    """
    trees = [_tree(0.9, seed=1), _tree(2.2, seed=11)]
    mean = torch.stack([tree.weight @ tree.mean for tree in trees]).mean(0)
    square = [t.weight @ ((t.mean - mean) ** 2 + t.spread()) for t in trees]
    scale = SIGMA_DATA / torch.stack(square).mean().sqrt().item()
    first, second = (tree.moved(mean, scale) for tree in trees)
    return first, second


def _tree(direction: float, seed: int) -> Mixture:
    """A tree that grows from the origin; its trunk has length 1 and the given angle in radians."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[float, ...]] = []

    def grow(x: float, y: float, angle: float, length: float, level: int) -> None:
        bend = rng.uniform(-0.25, 0.25)
        step = length / PER_BRANCH
        for j in range(PER_BRANCH):
            heading = angle + bend * (j / PER_BRANCH - 0.5)
            dx, dy = step * math.cos(heading), step * math.sin(heading)
            weight = (_MASS / 2) ** level
            rows.append((weight, x + dx / 2, y + dy / 2, heading, step / 2, _WIDTH * length))
            x, y = x + dx, y + dy
        if level + 1 < LEVELS:
            for side in (-1, 1):
                turn, shrink = side * rng.uniform(*_SPLIT), rng.uniform(*_SHRINK)
                grow(x, y, angle + turn, length * shrink, level + 1)

    grow(0.0, 0.0, direction, 1.0, 0)
    weight, x, y, heading, along, across = torch.tensor(rows, dtype=torch.float64).unbind(1)
    cos, sin = heading.cos(), heading.sin()
    axes = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
    mean, variance = torch.stack([x, y], 1), torch.stack([along**2, across**2], 1)
    return Mixture(weight / weight.sum(), mean, axes, variance)
