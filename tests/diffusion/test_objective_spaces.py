"""One denoiser under every parametrization: the same images, the same guidance."""

import math

import pytest
import torch
from test_objective_forms import BOUNDED, FORMS, SIGMAS
from torch import nn

from edm2lite.diffusion.parametrization import Scalings
from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.network.unet import UNetConfig
from edm2lite.sampling.guidance import APG, Guided, Rescale
from edm2lite.sampling.levels import cosine_sigmas, first_state, karras_sigmas
from edm2lite.sampling.solvers import heun

TINY = UNetConfig(
    img_resolution=4, img_channels=1, model_channels=16, channel_mult=(1,), num_blocks=1,
    attn_resolutions=(), head_channels=16,
)  # fmt: skip


def ideal(x, sigma):
    """D of a mixture: standard deviation 0.2 about +0.4 and -0.4."""
    var = sigma**2 + 0.04
    mean = 0.4 * torch.tanh(0.4 * x / var)
    return mean + 0.04 / var * (x - mean)


def denoiser_of(form, s=0.5):
    """The ideal D, taken apart into the F of a parametrization and put together again."""

    def denoise(x, sigma):
        c = Scalings.at(sigma, s, form)
        F = (ideal(x, sigma) - c.c_skip * x) / c.c_out
        return c.c_skip * x + c.c_out * F

    return denoise


@pytest.mark.parametrize("form", FORMS)
def test_the_same_denoiser_gives_the_same_images(form):
    sigmas = karras_sigmas(12)
    x = first_state(torch.randn(10, 1, 10, 10).double(), sigmas)
    expected = heun(ideal, x, sigmas)
    torch.testing.assert_close(heun(denoiser_of(form), x, sigmas), expected, rtol=0, atol=1e-10)


class Ideal(nn.Module):
    """A U-Net that has learned the ideal D: finds x and sigma in what the network is shown."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    def forward(self, seen, c_noise, *rest):
        c_noise, s = c_noise.double()[:, None, None, None], self.config.sigma_data
        sigma = {
            "log": lambda: torch.exp(4 * c_noise),
            "angle": lambda: s * torch.tan(c_noise),
            "time": lambda: s * c_noise / (1 - c_noise),
            "data_time": lambda: s * (1 - c_noise) / c_noise,
        }[self.config.embedding]()
        at_infinity = sigma.abs() > 1e6  # tan(pi/2) and 1/0, as float32 has them
        sigma = torch.where(at_infinity, math.inf, sigma)
        c = self.config.scalings(sigma)
        x = seen.double() / c.c_in
        D = torch.where(at_infinity, 0.0, ideal(x, torch.where(at_infinity, 1.0, sigma)))
        return ((D - c.c_skip * x) / c.c_out).float()


# sigma cannot be recovered from a step, which stays at 999 beyond the last level
@pytest.mark.parametrize("form, embedding", [pair for pair in BOUNDED if pair[1] != "step"])
def test_networks_of_every_form_sample_the_same_images_from_pure_noise(form, embedding):
    config = PrecondConfig(backbone=TINY, parametrization=form, embedding=embedding)
    net = Precond(config)
    net.unet = Ideal(config)
    sigmas = cosine_sigmas(16, sigma_max=math.inf)
    noise = torch.randn(8, 1, 4, 4)

    def limit(x, sigma):
        return torch.zeros_like(x) if sigma.isinf() else ideal(x, sigma)

    expected = heun(limit, noise.double(), sigmas)
    # float32 in and out of the U-Net; the embedding in float32 moves sigma by up to 1e-5
    torch.testing.assert_close(heun(net, noise, sigmas).double(), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("form", FORMS)
def test_guidance_is_the_same_in_every_space(form):
    generator = torch.Generator().manual_seed(2)
    x, D_main, D_guide = torch.randn(3, 2, 1, 8, 8, generator=generator, dtype=torch.float64)
    for sigma in SIGMAS:
        guided = Guided(lambda *_: D_main, lambda *_: D_guide, 2.5)
        D_x = next(guided.per_step())(x, sigma)
        c = Scalings.at(sigma, 0.5, form)
        F_main, F_guide = ((D - c.c_skip * x) / c.c_out for D in (D_main, D_guide))
        F_x = F_main + 1.5 * (F_main - F_guide)
        torch.testing.assert_close(c.c_skip * x + c.c_out * F_x, D_x, rtol=1e-10, atol=1e-10)


def test_rescale_is_that_of_v_whatever_the_network_predicts():
    generator = torch.Generator().manual_seed(3)
    x, D_main, D_x = torch.randn(3, 2, 1, 8, 8, generator=generator, dtype=torch.float64)
    sigma = torch.tensor(0.7).double()
    got = Rescale(share=0.7)(x, sigma, D_main, D_x)
    same = []
    for form in FORMS:
        c = Scalings.at(sigma, 0.5, form)
        F_main, F_x = ((D - c.c_skip * x) / c.c_out for D in (D_main, D_x))
        ratio = F_main.std((1, 2, 3), keepdim=True) / F_x.std((1, 2, 3), keepdim=True)
        there = c.c_skip * x + c.c_out * F_x * (0.7 * ratio + 0.3)
        same.append(torch.allclose(there, got, atol=1e-10))
    assert [form for form, is_same in zip(FORMS, same, strict=True) if is_same] == [
        "edm", "v", "trigflow",
    ]  # fmt: skip


def test_projection_is_that_of_d_whatever_the_network_predicts():
    generator = torch.Generator().manual_seed(4)
    x, D_main, D_guide = torch.randn(3, 2, 1, 8, 8, generator=generator, dtype=torch.float64)
    sigma = torch.tensor(0.7).double()

    def projected(main, guide):
        delta = main - guide
        along = (delta * main).sum((1, 2, 3), keepdim=True) / main.square().sum(
            (1, 2, 3), keepdim=True
        )
        return main + 1.5 * (delta - along * main)

    guided = Guided(lambda *_: D_main, lambda *_: D_guide, 2.5, apg=APG())
    got = next(guided.per_step())(x, sigma)
    torch.testing.assert_close(got, projected(D_main, D_guide), rtol=1e-10, atol=1e-10)
    for form in FORMS:
        c = Scalings.at(sigma, 0.5, form)
        F = projected(*((D - c.c_skip * x) / c.c_out for D in (D_main, D_guide)))
        # x0 is D but for its unit
        assert torch.allclose(c.c_skip * x + c.c_out * F, got) == (form == "x0")
