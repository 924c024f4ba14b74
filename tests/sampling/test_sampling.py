"""Noise levels against published values; samplers against the exact ODE of Gaussian data."""

import itertools
import math

import numpy as np
import pytest
import torch

from edm2lite.sampling.levels import (
    cosine_sigmas,
    first_state,
    karras_sigmas,
    linear_sigmas,
    sigmas_from,
    user_sigmas,
)
from edm2lite.sampling.solvers import dpmpp_2m, dpmpp_2m_steps, euler, euler_steps, heun, heun_steps

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


@pytest.mark.parametrize("sampler, order", [(euler, 1), (heun, 2), (dpmpp_2m, 2)])
def test_samplers_have_their_order_on_gaussian_data(sampler, order):
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    # exact solution of dx/dsigma = (x - D)/sigma is x ~ sqrt(sigma**2 + sigma_data**2)
    exact = np.sqrt((0.02**2 + 0.25) / (10**2 + 0.25))
    steps = np.array([16, 32, 64, 128])
    errors = []
    for n in steps:
        sigmas = karras_sigmas(int(n), 0.02, 10.0)[:-1]
        errors.append(abs(sampler(gaussian_denoiser, x, sigmas).item() - exact))
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.12)


def test_one_step_of_heun_equals_the_hand_calculation():
    x = torch.tensor([[[[2.0]]]], dtype=torch.float64)
    slope = (2 - 2 * 0.25 / 4.25) / 2
    middle = 2 + (1 - 2) * slope
    slope_next = (middle - middle * 0.25 / 1.25) / 1
    got = heun(gaussian_denoiser, x, torch.tensor([2.0, 1.0], dtype=torch.float64))
    assert got.item() == pytest.approx(2 - (slope + slope_next) / 2, rel=1e-14)


def test_one_step_of_dpmpp_2m_equals_the_hand_calculation():
    x = torch.tensor([[[[2.0]]]], dtype=torch.float64)
    got = dpmpp_2m(gaussian_denoiser, x, torch.tensor([4.0, 2.0, 0.5], dtype=torch.float64))
    D_0 = 2 * 0.25 / 16.25
    x_1 = D_0 + (2 / 4) * (2 - D_0)
    D_1 = x_1 * 0.25 / 4.25
    r = math.log(2) / math.log(4)  # the step before in units of this one, in log sigma
    middle = (1 + 1 / (2 * r)) * D_1 - D_0 / (2 * r)
    assert got.item() == pytest.approx((0.5 / 2) * x_1 + (1 - 0.5 / 2) * middle, rel=1e-14)


@pytest.mark.parametrize("sampler, calls", [(euler, 32), (heun, 63), (dpmpp_2m, 32)])
def test_samplers_call_the_denoiser_as_often_as_they_say(sampler, calls):
    seen = []

    def denoise(x, sigma):
        seen.append(float(sigma))
        return gaussian_denoiser(x, sigma)

    sampler(denoise, torch.ones(1, 1, 1, 1), karras_sigmas(32))
    assert len(seen) == calls and 0 not in seen


@pytest.mark.parametrize("steps", [euler_steps, heun_steps, dpmpp_2m_steps])
def test_states_are_those_on_the_way(steps):
    x, sigmas = torch.ones(2, 1, 1, 1, dtype=torch.float64) * 10, karras_sigmas(256, 0.02, 10.0)
    states = list(steps(gaussian_denoiser, x, sigmas))
    assert [s.step for s in states] == list(range(256))
    assert [s.sigma for s in states] == sigmas[1:].tolist()
    for before, state in itertools.pairwise(states[:100]):
        exact = 10 * math.sqrt((state.sigma**2 + 0.25) / 100.25)
        assert state.x[0].item() == pytest.approx(exact, rel=0.02)  # Euler's error at 256 steps
        preview = gaussian_denoiser(before.x, before.sigma)
        torch.testing.assert_close(state.D_x, preview, rtol=1e-12, atol=0)


def test_states_carry_no_graph():
    scale = torch.tensor(0.5, requires_grad=True)
    states = list(heun_steps(lambda x, sigma: x * scale, torch.ones(1, 1, 1, 1), karras_sigmas(3)))
    assert torch.is_grad_enabled() and not any(s.x.requires_grad for s in states)


def test_churn_keeps_the_distribution_of_gaussian_data():
    n = 20_000
    generator = torch.Generator().manual_seed(3)

    def noise():
        return torch.randn(n, 1, 1, 1, generator=generator, dtype=torch.float64)

    x = first_state(noise(), karras_sigmas(64, 0.002, 10.0))
    churned = heun(
        gaussian_denoiser, x, karras_sigmas(64, 0.002, 10.0), noise=noise, S_churn=20.0, S_min=0.05
    )
    straight = heun(gaussian_denoiser, x, karras_sigmas(64, 0.002, 10.0))
    assert churned.std().item() == pytest.approx(0.5, abs=0.01)  # 0.0025 is one standard error
    assert not torch.corrcoef(torch.stack([churned.flatten(), straight.flatten()]))[0, 1] > 0.9


def test_churn_goes_up_by_the_fraction_that_it_says():
    levels, draws = [], []

    def denoise(x, sigma):
        levels.append(sigma.item())
        return torch.zeros_like(x)  # then x just scales with sigma

    def noise():
        draws.append(1)
        return torch.full((1, 1, 1, 1), 3.0, dtype=torch.float64)

    x = torch.full((1, 1, 1, 1), 4.0, dtype=torch.float64)
    sigmas = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    got = heun(denoise, x, sigmas, noise=noise, S_churn=0.5, S_max=3.0, S_noise=0.5)
    # only the step at 2 lies below S_max; it goes up to 2.5 with noise of sqrt(2.5^2 - 2^2) = 1.5
    assert levels == [4.0, 2.0, 2.5, 1.0] and len(draws) == 1
    assert got.item() == pytest.approx((2 + 1.5 * 0.5 * 3) / 2.5, rel=1e-14)
    heun(denoise, x, sigmas, noise=noise, S_churn=100.0)
    assert levels[4] == pytest.approx(4 * math.sqrt(2))  # and never by more than sqrt(2)
    with pytest.raises(ValueError, match="needs noise"):
        heun(denoise, x, sigmas, S_churn=1.0)


@pytest.mark.parametrize("sampler", [euler, heun, dpmpp_2m])
def test_sampling_begins_at_infinity(sampler):
    """For N(m, sigma_data^2) the exact solution of noise n is m + sigma_data n, from inf to 0."""
    mean, calls = 3.0, []

    def denoise(x, sigma):
        calls.append((x.clone(), sigma))
        if torch.isinf(sigma):
            return torch.full_like(x, mean)
        return mean + (x - mean) * 0.25 / (sigma**2 + 0.25)

    noise = torch.linspace(-2, 2, 5, dtype=torch.float64).reshape(5, 1, 1, 1)
    sigmas = cosine_sigmas(200, 0.002, math.inf)
    assert sigmas[0] == math.inf and sigmas[1] < math.inf and sigmas[-1] == 0
    x = first_state(noise, sigmas)
    got = sampler(denoise, x, sigmas)
    assert torch.equal(calls[0][0], noise) and torch.isinf(calls[0][1])
    tolerance = {euler: 0.02, heun: 2e-4, dpmpp_2m: 3e-3}[sampler]  # of 200 steps, by their order
    torch.testing.assert_close(got, mean + 0.5 * noise, rtol=0, atol=tolerance)
    first = next(heun_steps(denoise, x, sigmas)).x
    torch.testing.assert_close(first, mean + sigmas[1] * noise, rtol=1e-14, atol=0)


def test_levels_of_other_schedules():
    linear = linear_sigmas(5, 1.0, 5.0)
    assert linear.tolist() == pytest.approx([5, 4, 3, 2, 1, 0])
    cosine = cosine_sigmas(3, math.tan(0.1), math.tan(1.5))
    assert cosine.atan().tolist() == pytest.approx([1.5, 0.8, 0.1, 0])
    assert user_sigmas([80, 2, 0.5]).tolist() == [80, 2, 0.5, 0]
    assert user_sigmas([math.inf, 2, 0]).tolist() == [math.inf, 2, 0]
    assert sigmas_from(user_sigmas([9, 4, 2]), 3.0).tolist() == [3, 2, 0]
    assert sigmas_from(user_sigmas([9, 4, 2]), 4.0).tolist() == [4, 2, 0]


@pytest.mark.parametrize("levels", [[], [0], [1, 2], [2, 2], [3, -1], [math.nan, 1], [2, math.nan]])
def test_unusable_user_levels_are_refused(levels):
    with pytest.raises(ValueError, match="must decrease"):
        user_sigmas(levels)
    with pytest.raises(ValueError, match="positive"):
        sigmas_from(karras_sigmas(4), 0)


def test_only_cosine_levels_begin_at_infinity():
    with pytest.raises(ValueError, match="finite"):
        karras_sigmas(4, sigma_max=math.inf)
