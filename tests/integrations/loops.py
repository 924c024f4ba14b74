"""The oracle of the callbacks: a loop in plain PyTorch, and averages by formula in float64."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from edm2lite.ema import list_snapshots, sigma_rel_to_gamma
from edm2lite.tensorfile import load_tensors

NUM, BATCH, ACCUMULATE = 22, 4, 4  # batches of 4, 4, 4, 4 | 4, 2: two steps an epoch
LR = 0.2


def build(norm: type[nn.Module] = nn.BatchNorm1d) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 4), norm(4), nn.Linear(4, 1))


def data(num: int = NUM) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(num, 6, generator=generator)
    return x, x.sum(1, keepdim=True).sin()


def mse(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (net(x) - y).square().mean()


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=LR, momentum=0.9)


def plain_loop(
    epochs: int, count, divisor, *, net=None, num=NUM, batch=BATCH, accumulate=ACCUMULATE,
    restart_at=None,
) -> list:  # fmt: skip
    """(samples seen, trained weights in float64) after every optimizer step.

    ``count(batch)`` samples advance the clock; losses are divided by ``divisor(batches of the
    step)``. From epoch ``restart_at`` on the optimizer is a new one.
    """
    net, (x, y) = net or build(), data(num)
    optimizer, nimg, walk = sgd(net), 0, []
    for epoch in range(epochs):
        if epoch == restart_at:
            optimizer = sgd(net)
        batches = list(zip(x.split(batch), y.split(batch), strict=True))
        for first in range(0, len(batches), accumulate):
            window = batches[first : first + accumulate]
            optimizer.zero_grad()
            for rows in window:
                (mse(net, *rows) / divisor(len(window))).backward()
                nimg += count(rows)
            optimizer.step()
            weights = {n: p.detach().numpy().astype(np.float64) for n, p in net.named_parameters()}
            walk.append((nimg, weights))
    return walk


def average(walk: list, nimg: int, sigma_rel: float, start=None) -> dict[str, np.ndarray]:
    """sum_k ((n_k / n)^(gamma+1) - (n_{k-1} / n)^(gamma+1)) theta_k, up to ``nimg`` (Eq. 1)."""
    power = float(sigma_rel_to_gamma(sigma_rel)) + 1
    before, total = (0, {}) if start is None else start
    total = {n: v * (before / nimg) ** power for n, v in total.items()}
    for seen, weights in walk:
        if seen <= nimg:
            mass = (seen / nimg) ** power - (before / nimg) ** power
            total = {n: total.get(n, 0) + mass * v for n, v in weights.items()}
            before = seen
    return total


def check_snapshots(run, walk, nimgs, sigma_rels=(0.05, 0.10), prefix="") -> None:
    """The snapshots of a run are the averages at ``nimgs`` of the walk, and nothing else."""
    infos = list_snapshots(run)
    assert not list(Path(run).rglob(".lock"))  # others may write to it now
    assert [i.nimg for i in infos] == [n for n in nimgs for _ in sigma_rels]
    for info in infos:
        stored, _ = load_tensors(info.path)
        for name, value in average(walk, info.nimg, info.sigma_rel).items():
            # tens of roundings in float32 of weights of size about 1
            np.testing.assert_allclose(stored[prefix + name].numpy(), value, rtol=0, atol=2e-6)


def check_resumed(whole, parts, identity, aside):
    """The snapshots of a run in parts are those of the whole one to the bit, and of one run.

    Those of ``aside``, samples at which the first part went further than its checkpoint, are kept
    in a folder of their own.
    """
    infos = list_snapshots(parts)
    expected = {info.path.name: load_tensors(info.path)[0] for info in list_snapshots(whole)}
    assert [info.path.name for info in infos] == list(expected) and len(infos) == 6
    for info in infos:
        tensors = load_tensors(info.path)[0]
        for name, value in expected[info.path.name].items():
            assert value.equal(tensors[name]), (info.path, name)
    assert {info.run for info in infos} == identity
    found = {path.name for path in (parts / "snapshots" / "superseded").iterdir()}
    assert found == {f"ema-{s}-{aside:010d}.safetensors" for s in ("0.05000", "0.10000")}
