"""The training loss against its formula, and its learned uncertainty."""

import math

import pytest
import torch

from edm2lite.diffusion.noise_density import LogNormal
from edm2lite.diffusion.objective import DenoisingLoss
from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.network.unet import UNetConfig


def test_log_normal_levels_have_their_moments():
    sigma = LogNormal(P_mean=-0.4, P_std=1.2).sigma(torch.randn(200_000))
    assert sigma.log().mean().item() == pytest.approx(-0.4, abs=0.02)
    assert sigma.log().std().item() == pytest.approx(1.2, abs=0.02)


def tiny_loss():
    unet = UNetConfig(
        img_resolution=4, img_channels=1, model_channels=16, channel_mult=(1,), num_blocks=1,
        attn_resolutions=(), head_channels=16,
    )  # fmt: skip
    return DenoisingLoss(Precond(PrecondConfig(backbone=unet)))


def test_loss_equals_its_formula():
    loss = tiny_loss()
    images, noise = torch.randn(5, 1, 4, 4) * 0.5, torch.randn(5, 1, 4, 4)
    sigma = torch.tensor([0.002, 0.1, 0.5, 1.0, 80.0])
    D_x = loss.net(images + sigma[:, None, None, None] * noise, sigma)
    u = loss.net.logvar(sigma)
    weight = torch.tensor([250004.0, 104.0, 8.0, 5.0, 4.00015625])
    expected = (weight / u.exp())[:, None, None, None] * (D_x - images) ** 2
    expected = (expected + u[:, None, None, None]).sum((1, 2, 3))
    torch.testing.assert_close(
        loss(images, None, sigma, noise).loss, expected, rtol=1e-5, atol=1e-5
    )


def test_loss_of_an_untrained_network_weighs_every_level_equally():
    loss = tiny_loss()
    with torch.no_grad():
        loss.net.logvar_linear.weight.zero_()  # u = 0
    n = 4000
    images, noise = torch.randn(n, 1, 4, 4) * 0.5, torch.randn(n, 1, 4, 4)
    for sigma in (0.01, 0.5, 20.0):
        with torch.no_grad():
            value = loss(images, None, torch.full((n,), sigma), noise).loss.mean() / 16
        assert value.item() == pytest.approx(1, abs=0.03)  # lambda L = 1 at F = 0


def test_uncertainty_is_stationary_where_it_equals_the_log_of_the_loss():
    """d/du (L / e^u + u) = 0 at u = ln L, for each noise level by itself."""
    loss = tiny_loss()
    images, noise = torch.randn(3, 1, 4, 4) * 0.5, torch.randn(3, 1, 4, 4)
    sigma, weight = torch.tensor([0.1, 0.5, 20.0]), torch.tensor([104.0, 8.0, 4.0025])
    with torch.no_grad():
        D_x = loss.net(images + sigma[:, None, None, None] * noise, sigma)
        u = (weight * (D_x - images).square().mean((1, 2, 3))).log()
    gradients = []
    for shift in (0.0, 0.5):
        moved = (u + shift).requires_grad_()
        loss.net.logvar = lambda sigma, moved=moved: moved
        loss(images, None, sigma, noise).loss.sum().backward()
        gradients.append(moved.grad / 16)
    assert gradients[0].abs().max() < 1e-5
    torch.testing.assert_close(gradients[1], torch.full((3,), 1 - math.exp(-0.5)))
