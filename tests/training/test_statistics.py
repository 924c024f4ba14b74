"""Statistics of a tick against NumPy; the uncertainty head."""

import json
import math

import numpy as np
import pytest
import torch
from tiny_run import tiny_config

from edm2lite.diffusion.noise_density import LogNormal
from edm2lite.diffusion.objective import DenoisingLoss
from edm2lite.diffusion.precond import Precond
from edm2lite.network.layers import normalize_weights_
from edm2lite.training.statistics import NUM_LEVELS, Statistics

CPU = torch.device("cpu")


def test_means_by_noise_level_are_those_of_the_samples():
    rng = np.random.default_rng(0)
    noise = LogNormal(P_mean=-0.5, P_std=1.5)
    sigma = np.exp(rng.normal(-0.5, 2.5, size=400))  # wider than the ranges
    u, error = rng.normal(size=400), rng.uniform(0.5, 2, size=400)
    loss = error / np.exp(u) + u
    statistics = Statistics(noise, CPU)
    for part in np.array_split(np.arange(400), 7):
        tensors = [torch.tensor(a[part], dtype=torch.float32) for a in (loss, u, sigma)]
        statistics.add_losses(*tensors, part)
    line = statistics.finish_tick()
    assert line["loss"] == pytest.approx(loss.mean(), rel=1e-6)
    centers = -0.5 + 1.5 * (np.arange(12) - 5.5) / 2
    np.testing.assert_allclose(line["ln_sigma"], centers, atol=1e-6)
    nearest = np.abs(np.log(sigma)[:, None] - centers).argmin(1)
    for level in range(NUM_LEVELS):
        inside = nearest == level
        assert line["u_at"][level] == pytest.approx(u[inside].mean(), rel=1e-5)
        assert line["loss_at"][level] == pytest.approx(error[inside].mean(), rel=1e-5)
    assert line["nonfinite_samples"] == 0 and line["last_bad_sample"] is None
    assert statistics.finish_tick()["loss_at"] == [None] * NUM_LEVELS  # a new tick


def test_bad_samples_and_steps_are_counted_and_left_out():
    statistics = Statistics(LogNormal(), CPU)
    losses = torch.tensor([1.0, math.nan, 3.0, math.inf])
    statistics.add_losses(losses, torch.zeros(4), torch.ones(4), np.arange(40, 44))
    for nimg, norm in enumerate([3.0, math.nan, math.inf, 5.0, math.nan]):
        statistics.add_step(nimg, torch.tensor(norm, dtype=torch.float64))
    assert statistics.longest_bad_streak() == 2
    again = Statistics(LogNormal(), CPU)
    again.load(statistics.state())
    for found in (statistics, again):
        line = found.finish_tick()
        assert line["loss"] == 2 and line["grad_norm"] == 4
        assert line["nonfinite_samples"] == 2 and line["last_bad_sample"] == 43
        assert line["nonfinite_steps"] == 3 and line["last_bad_nimg"] == 4
        assert found.longest_bad_streak() == 1  # the row that is still going on
    json.dumps(line, allow_nan=False)


class Fixed(Precond):
    """A denoiser whose squared error at sigma is 0.1 + sigma, whatever it sees; images are 0."""

    def forward(self, x, sigma, conditioning=None):
        return (0.1 + sigma).sqrt()[:, None, None, None].expand_as(x)


def test_uncertainty_trained_on_fixed_losses_becomes_the_log_of_the_weighted_loss():
    net = Fixed(tiny_config().net)
    loss = DenoisingLoss(net)
    sigma = torch.tensor([0.05, 0.2, 0.7, 2.0, 9.0])
    images = torch.zeros(5, 1, 8, 8)
    adam = torch.optim.Adam([net.logvar_linear.weight], lr=0.02)
    for step in range(1200):
        adam.param_groups[0]["lr"] = 0.02 * min(1, (1200 - step) / 600)
        adam.zero_grad()
        (loss(images, None, sigma, images).loss.mean() / 64).backward()
        adam.step()
        normalize_weights_(net)
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    goal = torch.log(weight * (0.1 + sigma))
    # Adam with a rate that falls to 0 comes to the minimum; five values, 128 features
    torch.testing.assert_close(net.logvar(sigma).detach(), goal, atol=2e-3, rtol=0)
