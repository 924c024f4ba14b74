"""A two-dimensional density whose every number is known: two trees, one per class.

A branch is a row of Gaussians along a line; at its end it splits into two thinner, shorter and
lighter ones, six times over. Both trees grow from one root, as classes of images have much in
common, and their twigs are finer than a small network can follow: there it makes its mistakes.
Densities and denoisers are sums over the Gaussians, in closed form and float64.
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

_MASS = 0.75  # of a level of the tree, relative to the one below
_WIDTH = 0.13  # standard deviation across a branch, relative to its length
_SHRINK = (0.72, 0.84)  # of a branch's length, relative to the one that it grows from
_SPLIT = (0.4, 0.7)  # angle between a branch and the one that it grows from


@dataclass(frozen=True)
class Mixture:
    """Gaussians in the plane.

    Attributes:
        weight: [K], of sum 1; the Gaussians of a branch follow each other.
        mean: [K, 2].
        axes: [K, 2, 2], unit vectors along and across.
        variance: [K, 2], along and across.
    """

    weight: Tensor
    mean: Tensor
    axes: Tensor
    variance: Tensor

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """[num, 2]."""
        k = torch.multinomial(self.weight, num, replacement=True, generator=generator)
        z = torch.randn(num, 2, generator=generator, dtype=torch.float64) * self.variance[k].sqrt()
        return self.mean[k] + torch.einsum("na,nad->nd", z, self.axes[k])

    def log_density(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """[N] of x [N, 2], data plus noise of standard deviation sigma."""
        return self._log_terms(x, sigma).logsumexp(1)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """[N, 2], the mean of the data that x may come from: the ideal denoiser."""
        share = self._log_terms(x, sigma).softmax(1)
        kept = self._quadratic(self.variance / (self.variance + sigma**2))  # of x - mean
        offset = self.mean - torch.einsum("kde,ke->kd", kept, self.mean)
        matrix = (share @ kept.flatten(1)).unflatten(1, (2, 2))
        return torch.einsum("nde,ne->nd", matrix, x.double()) + share @ offset

    def branch(self, x: Tensor) -> Tensor:
        """[N], index of the branch that each x [N, 2] most likely is of."""
        return self._log_terms(x, 0.0).unflatten(1, (-1, PER_BRANCH)).logsumexp(2).argmax(1)

    def branch_weight(self) -> Tensor:
        """[number of branches], of sum 1."""
        return self.weight.unflatten(0, (-1, PER_BRANCH)).sum(1)

    def moved(self, shift: Tensor, scale: float) -> Mixture:
        """The density of ``(x - shift) * scale``."""
        mean = (self.mean - shift) * scale
        return Mixture(self.weight, mean, self.axes, self.variance * scale**2)

    def spread(self) -> Tensor:
        """[K, 2], variance of each Gaussian along x and y."""
        return self._quadratic(self.variance).diagonal(dim1=1, dim2=2)

    def _quadratic(self, diagonal: Tensor) -> Tensor:
        """[K, 2, 2] symmetric matrices with ``diagonal`` [K, 2] in the axes of each Gaussian."""
        return torch.einsum("kad,ka,kae->kde", self.axes, diagonal, self.axes)

    def _log_terms(self, x: Tensor, sigma: float) -> Tensor:
        """[N, K], logs of the summands of the density: one product of matrices."""
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
    """The two classes, of equal weight; together of mean 0 and standard deviation SIGMA_DATA."""
    trees = [_tree(0.9, seed=1), _tree(2.2, seed=11)]
    mean = torch.stack([tree.weight @ tree.mean for tree in trees]).mean(0)
    square = [t.weight @ ((t.mean - mean) ** 2 + t.spread()) for t in trees]
    scale = SIGMA_DATA / torch.stack(square).mean().sqrt().item()
    first, second = (tree.moved(mean, scale) for tree in trees)
    return first, second


def _tree(direction: float, seed: int) -> Mixture:
    """A tree from the origin, its first branch of length 1 in the direction (radians)."""
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
