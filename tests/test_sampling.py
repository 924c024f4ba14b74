"""Noise levels against published values; Heun against the exact ODE of Gaussian data."""

import numpy as np
import pytest
import torch

from edm2lite.objective import DenoisingLoss, LogNormal
from edm2lite.precond import Precond, PrecondConfig
from edm2lite.sampling import heun, karras_sigmas
from edm2lite.unet import UNetConfig

PUBLISHED = [
    80, 66.93087, 55.73621, 46.18639, 38.07488, 31.21641, 25.44536, 20.61406, 16.59137, 13.26122,
    10.52124, 8.28158, 6.46366, 4.99911, 3.82873, 2.90153, 2.17386, 1.60857, 1.17427, 0.84462,
    0.59770, 0.41543, 0.28304, 0.18860, 0.12257, 0.07743, 0.04736, 0.02792, 0.01576, 0.00845,
    0.00427, 0.002, 0,
]  # fmt: skip


def gaussian_denoiser(x, sigma, sigma_data=0.5):
    return x * sigma_data**2 / (sigma**2 + sigma_data**2)


def test_noise_levels_are_the_published_ones():
    np.testing.assert_allclose(karras_sigmas(32), PUBLISHED, atol=5.1e-6)


def test_a_single_step_goes_from_sigma_max_to_zero():
    assert karras_sigmas(1).tolist() == pytest.approx([80.0, 0.0])


@pytest.mark.parametrize("arguments", [(0,), (4, -1.0), (4, 3.0, 2.0)])
def test_unusable_noise_levels_are_refused(arguments):
    with pytest.raises(ValueError, match="sigma_min|num_steps"):
        karras_sigmas(*arguments)


def test_heun_has_order_two():
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    # exact solution of dx/dsigma = (x - D)/sigma is x ~ sqrt(sigma**2 + sigma_data**2)
    exact = np.sqrt((0.02**2 + 0.25) / (10**2 + 0.25))
    steps = np.array([16, 32, 64, 128])
    errors = []
    for n in steps:
        sigmas = karras_sigmas(int(n), 0.02, 10.0)[:-1]
        errors.append(abs(heun(gaussian_denoiser, x, sigmas).item() - exact))
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(2, abs=0.1)


def test_one_step_of_heun_equals_the_hand_calculation():
    x = torch.tensor([[[[2.0]]]], dtype=torch.float64)
    slope = (2 - 2 * 0.25 / 4.25) / 2
    middle = 2 + (1 - 2) * slope
    slope_next = (middle - middle * 0.25 / 1.25) / 1
    got = heun(gaussian_denoiser, x, torch.tensor([2.0, 1.0], dtype=torch.float64))
    assert got.item() == pytest.approx(2 - (slope + slope_next) / 2, rel=1e-14)


def test_heun_calls_the_denoiser_2n_minus_1_times():
    calls = []

    def denoise(x, sigma):
        calls.append(float(sigma))
        return gaussian_denoiser(x, sigma)

    heun(denoise, torch.ones(1, 1, 1, 1), karras_sigmas(32))
    assert len(calls) == 63 and 0 not in calls


def test_log_normal_levels_have_their_moments():
    sigma = LogNormal(P_mean=-0.4, P_std=1.2).sigma(torch.randn(200_000))
    assert sigma.log().mean().item() == pytest.approx(-0.4, abs=0.02)
    assert sigma.log().std().item() == pytest.approx(1.2, abs=0.02)


def tiny_loss():
    unet = UNetConfig(
        img_resolution=4, img_channels=1, model_channels=16, channel_mult=(1,), num_blocks=1,
        attn_resolutions=(), head_channels=16,
    )  # fmt: skip
    return DenoisingLoss(Precond(PrecondConfig(unet=unet)))


def test_loss_equals_its_formula():
    loss = tiny_loss()
    images, noise = torch.randn(5, 1, 4, 4) * 0.5, torch.randn(5, 1, 4, 4)
    sigma = torch.tensor([0.002, 0.1, 0.5, 1.0, 80.0])
    D_x = loss.net(images + sigma[:, None, None, None] * noise, sigma)
    u = loss.net.logvar(sigma)
    weight = torch.tensor([250004.0, 104.0, 8.0, 5.0, 4.00015625])
    expected = (weight / u.exp())[:, None, None, None] * (D_x - images) ** 2
    expected = (expected + u[:, None, None, None]).sum((1, 2, 3))
    torch.testing.assert_close(loss(images, None, sigma, noise), expected, rtol=1e-5, atol=1e-5)


def test_loss_of_an_untrained_network_weighs_every_level_equally():
    loss = tiny_loss()
    with torch.no_grad():
        loss.net.logvar_linear.weight.zero_()  # u = 0
    n = 4000
    images, noise = torch.randn(n, 1, 4, 4) * 0.5, torch.randn(n, 1, 4, 4)
    for sigma in (0.01, 0.5, 20.0):
        with torch.no_grad():
            value = loss(images, None, torch.full((n,), sigma), noise).mean() / 16
        assert value.item() == pytest.approx(1, abs=0.03)  # lambda L = 1 at F = 0


def test_uncertainty_is_stationary_where_it_equals_the_log_of_the_loss():
    square, u = torch.tensor(0.37), torch.tensor(0.37).log().requires_grad_()
    (square / u.exp() + u).backward()
    assert u.grad.abs() < 1e-6
