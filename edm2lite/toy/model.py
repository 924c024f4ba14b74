"""A small magnitude-preserving network in the plane, and its training in seconds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edm2lite.ema import PowerFunctionEMA
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.layers import MPConv, MPFourier, normalize_weights_
from edm2lite.network.operations import mp_silu
from edm2lite.toy.density import SIGMA_DATA, Mixture


class ToyNet(nn.Module):
    """A denoiser of points: preconditioning round four hidden layers.

    Its input is the point, Fourier features of both coordinates, ln(sigma) / 4, a constant and the
    class.

    Args:
        width: Of the hidden layers.
        num_classes: 0 for an unconditional network.
    """

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.fourier = nn.ModuleList(MPFourier(width // 2, bandwidth=1.2) for _ in range(2))
        widths = [4 + 2 * (width // 2) + num_classes] + [width] * 4
        self.hidden = nn.ModuleList(
            MPConv(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.out = MPConv(width, 2)
        self.out_gain = nn.Parameter(torch.zeros([]))
        normalize_weights_(self)

    def forward(
        self, x: Tensor, sigma: Tensor, conditioning: Conditioning | Tensor | None = None
    ) -> Tensor:
        """Denoised points [N, 2] of x [N, 2], sigma [N] or a scalar, and their classes."""
        sigma = sigma.expand(len(x))[:, None]
        total = sigma**2 + SIGMA_DATA**2
        u = x * total.rsqrt()
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
        F_x = self.out(h, gain=self.out_gain)
        return SIGMA_DATA**2 / total * x + sigma * SIGMA_DATA * total.rsqrt() * F_x


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a network is trained: the defaults are those of arXiv 2406.02507, App. C."""

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


def train(plan: Plan, classes: tuple[Mixture, ...], progress: Callable[[int], object]) -> ToyNet:
    """A network with its weights averaged to ``plan.sigma_rel``.

    Args:
        plan: How.
        classes: Densities of the classes, of equal weight.
        progress: Called with 1 after every step.
    """
    generator = torch.Generator().manual_seed(plan.seed)
    with torch.random.fork_rng():
        torch.manual_seed(plan.seed)
        net = ToyNet(plan.width, plan.num_classes)
    ema = PowerFunctionEMA(net, sigma_rels=(plan.sigma_rel,))
    optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.99), fused=True)
    share = plan.batch_size // len(classes)
    labels = torch.arange(len(classes)).repeat_interleave(share)
    data = [mixture.sample(share * 512, generator).float() for mixture in classes]
    for step in range(plan.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.lr / math.sqrt(max(step / plan.lr_steps, 1))
        pick = torch.randint(share * 512, (share,), generator=generator)
        y = torch.cat([points[pick] for points in data])
        z = torch.randn(len(y), generator=generator) * plan.P_std + plan.P_mean
        sigma = z.exp()
        noise = torch.randn(y.shape, generator=generator) * sigma[:, None]
        weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
        error = (net(y + noise, sigma, labels) - y).square().sum(1)
        optimizer.zero_grad()
        (weight * error).mean().backward()
        optimizer.step()
        ema.update((step + 1) * len(y))
        normalize_weights_(net)
        progress(1)
    net.load_state_dict(ema.state_dict_of(plan.sigma_rel))
    return net.eval().requires_grad_(False)
