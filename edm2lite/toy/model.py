"""A small magnitude-preserving denoiser of points in the plane, and its training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from edm2lite.diffusion.weighting import edm_weight
from edm2lite.ema import PowerFunctionEMA
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.layers import MPConv, MPFourier, normalize_weights_
from edm2lite.network.operations import mp_silu
from edm2lite.toy.density import SIGMA_DATA, Mixture


class ToyNet(nn.Module):
    """A denoiser D(x; sigma, class) of points: EDM preconditioning around four hidden layers.

    The layers see the scaled point, Fourier features of both coordinates, ln(sigma) / 4, a constant
    and the class (one-hot).

    Args:
        width: Number of features of the hidden layers.
        num_classes: Number of classes, or 0 for an unconditional network.

    Example:
        >>> net = ToyNet(width=16, num_classes=2)
        >>> x, classes = torch.zeros(5, 2), torch.zeros(5, dtype=torch.int64)
        >>> net(x, torch.tensor(0.5), classes).shape
        torch.Size([5, 2])
    """

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.fourier = nn.ModuleList(MPFourier(width // 2, bandwidth=1.2) for _ in range(2))
        widths = [4 + 2 * (width // 2) + num_classes] + [width] * 4
        self.hidden = nn.ModuleList(MPConv(a, b) for a, b in pairwise(widths))
        self.out = MPConv(width, 2)
        self.out_gain = nn.Parameter(torch.zeros([]))
        normalize_weights_(self)

    def forward(
        self, x: Tensor, sigma: Tensor, conditioning: Conditioning | Tensor | None = None
    ) -> Tensor:
        """Denoised points [N, 2].

        Args:
            x: [N, 2] points with noise.
            sigma: [N] or scalar noise levels.
            conditioning: Condition ``label`` or class indices [N]; unused without classes.
        """
        sigma = sigma.expand(len(x))[:, None]
        total = sigma**2 + SIGMA_DATA**2
        c_in = total.rsqrt()
        u = x * c_in
        parts = [u, sigma.log() / 4, torch.ones_like(sigma)]
        parts += [fourier(u[:, i]) for i, fourier in enumerate(self.fourier)]
        if self.num_classes:
            one_hot = nn.functional.one_hot(
                Conditioning.of(conditioning)["label"], self.num_classes
            )
            parts.append(one_hot * math.sqrt(self.num_classes))
        h = torch.cat(parts, 1)
        for layer in self.hidden:
            h = mp_silu(layer(h))
        F_x: Tensor = self.out(h, gain=self.out_gain)
        return SIGMA_DATA**2 / total * x + sigma * SIGMA_DATA * c_in * F_x


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """Size and training of a :class:`ToyNet`; the defaults are those of arXiv 2406.02507, App. C.

    Attributes:
        width: Number of features of the hidden layers.
        num_classes: Number of classes that the network is told, or 0.
        num_steps: Number of optimizer steps.
        batch_size: Number of points per step.
        lr: Learning rate of Adam, constant for ``lr_steps`` steps, then falling as
            1 / sqrt(step).
        lr_steps: Number of steps before the learning rate falls.
        P_mean, P_std: Mean and standard deviation of ln sigma in training.
        sigma_rel: EMA length of the weights that are used.
        seed: Seed of the initial weights, the data and the noise.

    Example:
        >>> ToyConfig(width=32, num_steps=512).batch_size
        4096
    """

    width: int
    num_classes: int = 2
    num_steps: int
    batch_size: int = 4096
    lr: float = 0.01
    lr_steps: int = 512
    P_mean: float = -2.3
    P_std: float = 1.5
    sigma_rel: float = 0.01
    seed: int = 0


def train(
    config: ToyConfig, classes: tuple[Mixture, ...], progress: Callable[[int], object]
) -> ToyNet:
    """A trained network, whose weights are averaged with width ``config.sigma_rel``.

    Args:
        config: Size and training of the network.
        classes: Density of each class; every batch has equally many points of each.
        progress: Called with 1 after every step.

    Example:
        >>> from edm2lite.toy.density import two_trees
        >>> config = ToyConfig(width=16, num_steps=3, batch_size=64, sigma_rel=0.1)
        >>> net = train(config, two_trees(), progress=lambda steps: None)
        >>> net.training
        False
    """
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        net = ToyNet(config.width, config.num_classes)
    ema = PowerFunctionEMA(net, sigma_rels=(config.sigma_rel,))
    optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.99), fused=True)
    share = config.batch_size // len(classes)
    labels = torch.arange(len(classes)).repeat_interleave(share)
    data = [mixture.sample(share * 512, generator).float() for mixture in classes]
    for step in range(config.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr / math.sqrt(max(step / config.lr_steps, 1))
        pick = torch.randint(share * 512, (share,), generator=generator)
        y = torch.cat([points[pick] for points in data])
        z = torch.randn(len(y), generator=generator) * config.P_std + config.P_mean
        sigma = z.exp()
        noise = torch.randn(y.shape, generator=generator) * sigma[:, None]
        weight = edm_weight(sigma, SIGMA_DATA)
        error = (net(y + noise, sigma, labels) - y).square().sum(1)
        optimizer.zero_grad()
        (weight * error).mean().backward()
        optimizer.step()
        ema.update((step + 1) * len(y))
        normalize_weights_(net)
        progress(1)
    net.load_state_dict(ema.state_dict_of(config.sigma_rel))
    return net.eval().requires_grad_(False)
