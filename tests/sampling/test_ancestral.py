"""DDPM's sampler against its formulas, and guidance of some channels."""

import math

import pytest
import torch

from edm2lite.diffusion.ddpm import levels
from edm2lite.sampling.ancestral import ancestral, ancestral_steps, respaced_sigmas
from edm2lite.sampling.guidance import APG, Guided, Rescale


def ddpm_step(z, D, a_t, a_s, v):
    """Mean and variance of z at the next level: arXiv 2006.11239, Eqs. 6 and 7; 2102.09672."""
    alpha, beta = (a_t / a_s) ** 2, 1 - (a_t / a_s) ** 2
    mean = (a_s * beta * D + math.sqrt(alpha) * (1 - a_s**2) * z) / (1 - a_t**2)
    lower = (1 - a_s**2) / (1 - a_t**2) * beta
    return mean, lower if v is None else math.exp((1 + v) / 2 * math.log(beta)
                                                  + (1 - v) / 2 * math.log(lower))  # fmt: skip


@pytest.mark.parametrize("v", [None, -1.0, 0.3, 1.0])
def test_every_step_is_that_of_ddpm(v):
    sigmas = torch.cat([respaced_sigmas(7), torch.zeros(1)]).double()
    x = torch.randn(1, 2, 3, 3).double() * sigmas[0]
    draw = torch.randn(1, 2, 3, 3).double()

    def denoise(x, sigma):
        D_x = torch.tanh(x / sigma)
        return D_x if v is None else torch.cat([D_x, torch.full_like(D_x, v)], 1)

    states = list(ancestral_steps(denoise, x, sigmas, noise=lambda: draw))
    for sigma, state in zip(sigmas.tolist(), states[:-1], strict=False):
        a_t, a_s = (1 / math.sqrt(1 + level**2) for level in (sigma, state.sigma))
        D_x = torch.tanh(x / sigma)
        mean, variance = ddpm_step(a_t * x, D_x, a_t, a_s, v)
        x = (mean + math.sqrt(variance) * draw) / a_s
        torch.testing.assert_close(state.x, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(states[-1].x, torch.tanh(x / sigmas[-2]))


def test_it_draws_from_a_gaussian_with_the_right_variance():
    generator = torch.Generator().manual_seed(0)

    def normal():
        return torch.randn(1, 1, 100, 100, generator=generator)

    sigmas = torch.cat([respaced_sigmas(250), torch.zeros(1)])
    x = ancestral(
        lambda x, s: x * 4 / (4 + s**2), normal() * sigmas[0].float(), sigmas, noise=normal
    )
    assert x.std().item() == pytest.approx(2, abs=0.1)  # 10 000 values: 0.014; steps: some percent


def test_levels_are_those_of_the_released_sampler():
    got, table = respaced_sigmas(250), levels("linear")
    assert len(got) == 250 and got[0] == table[999] and got[-1] == table[0]
    assert got[-2] == table[4] and got[-3] == table[8]  # 999 / 249 = 4.01 steps apart
    with pytest.raises(ValueError, match="num_steps must lie in 2 to 1000, got 1"):
        respaced_sigmas(1)


def test_guidance_may_leave_out_channels_and_always_leaves_the_variance():
    x, D_main, D_guide, v, other = torch.randn(5, 2, 4, 3, 3)
    sigma = torch.tensor(1.0)
    plain = Guided(lambda x, s: D_main, lambda x, s: D_guide, 3.0)
    three = Guided(plain.main, plain.guide, 3.0, channels=3)
    full = D_main + 2 * (D_main - D_guide)
    torch.testing.assert_close(plain(x, sigma), full)
    torch.testing.assert_close(three(x, sigma), torch.cat([full[:, :3], D_main[:, 3:]], 1))
    for options in ({}, {"rescale": Rescale(share=0.7)}, {"apg": APG()}):
        expected = Guided(plain.main, plain.guide, 3.0, channels=3, **options)(x, sigma)
        told = Guided(
            lambda x, s: torch.cat([D_main, v], 1), lambda x, s: torch.cat([D_guide, other], 1),
            3.0, channels=3, **options,
        )(x, sigma)  # fmt: skip
        torch.testing.assert_close(told, torch.cat([expected, v], 1))
