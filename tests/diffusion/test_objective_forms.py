"""Parametrizations and weightings against their formulas, and against each other."""

import itertools
import math
from typing import get_args

import numpy as np
import pytest
import torch

from edm2lite.diffusion.ddpm import levels
from edm2lite.diffusion.parametrization import (
    EMBEDDINGS,
    PARAMETRIZATIONS,
    Embedding,
    Parametrization,
    Scalings,
    infinite_sigma_error,
)
from edm2lite.diffusion.weighting import WEIGHTINGS, Weighting, edm_weight, weight_on

FORMS = list(PARAMETRIZATIONS)
BOUNDED = [  # what can denoise pure noise
    (form, embedding)
    for form in FORMS
    for embedding in EMBEDDINGS
    if infinite_sigma_error(form, embedding) is None
]
SIGMAS = torch.tensor([0.002, 0.03, 0.4, 1.0, 7.0, 80.0]).double()

# what F predicts of clean y (standard deviation s) and noise n, as the papers define it
TARGETS = {
    "edm": lambda y, n, sigma, s: (sigma / s * y - s * n) / np.hypot(sigma, s),
    "v": lambda y, n, sigma, s: (s * n - sigma / s * y) / np.hypot(sigma, s),
    "epsilon": lambda y, n, sigma, s: n,
    "x0": lambda y, n, sigma, s: y / s,
    "flow": lambda y, n, sigma, s: (n - y / s) / math.sqrt(2),
    "trigflow": lambda y, n, sigma, s: (
        np.cos(np.arctan(sigma / s)) * n - np.sin(np.arctan(sigma / s)) * y / s
    ),
    "sit": lambda y, n, sigma, s: y / s - n,
}
# lambda on (D - y)**2 for data of variance 1, as docs/objectives.md has it
LAMBDAS = {
    "uncertainty": lambda sigma: (sigma**2 + 1) / sigma**2,
    "edm": lambda sigma: (sigma**2 + 1) / sigma**2,
    "epsilon": lambda sigma: 1 / sigma**2,
    "x0": lambda sigma: np.ones_like(sigma),
    "snr_plus_one": lambda sigma: 1 + 1 / sigma**2,
    "min_snr": lambda sigma: np.minimum(1 / sigma**2, 5),
    "soft_min_snr": lambda sigma: 1 / (sigma**2 + 1),
    "sigmoid": lambda sigma: 1 / (sigma**2 + 1),
    "flow": lambda sigma: ((1 + sigma) / sigma) ** 2,
}


def random_pair(num=1000, s=0.5):
    generator = torch.Generator().manual_seed(1)
    y, n = torch.randn(2, num, generator=generator, dtype=torch.float64)
    return y * s, n


def test_every_name_has_its_row():
    assert set(FORMS) == set(get_args(Parametrization)) == set(TARGETS)
    assert set(EMBEDDINGS) == set(get_args(Embedding))
    assert set(WEIGHTINGS) == set(LAMBDAS)


@pytest.mark.parametrize("s", [0.5, 1.0])
@pytest.mark.parametrize("form", FORMS)
def test_f_predicts_what_the_papers_say(form, s):
    y, n = random_pair(s=s)
    for sigma in SIGMAS:
        c = Scalings.at(sigma, s, form)
        target = (y - c.c_skip * (y + sigma * n)) / c.c_out
        expected = TARGETS[form](y.numpy(), n.numpy(), float(sigma), s)
        # y - x cancels at small sigma: 1e-16 * |y| / c_out at most
        np.testing.assert_allclose(target, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("s", [0.5, 1.0])
@pytest.mark.parametrize("form", [form for form in FORMS if form != "sit"])
def test_input_and_target_have_magnitude_one(form, s):
    c = Scalings.at(SIGMAS, s, form)
    magnitude_in = c.c_in * (s**2 + SIGMAS**2).sqrt()
    magnitude_out = torch.hypot((1 - c.c_skip) * s, c.c_skip * SIGMAS) / c.c_out.abs()
    torch.testing.assert_close(magnitude_in, torch.ones_like(SIGMAS), rtol=1e-12, atol=0)
    torch.testing.assert_close(magnitude_out, torch.ones_like(SIGMAS), rtol=1e-10, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_trigflow_and_v_are_edm_with_the_sign_of_f_turned(form):
    edm, c = Scalings.at(SIGMAS, 0.5), Scalings.at(SIGMAS, 0.5, form)
    turned = c.c_skip.equal(edm.c_skip) and c.c_out.equal(-edm.c_out)
    assert turned == (form in ("v", "trigflow"))


def test_rectified_flow_is_straight_in_its_own_time():
    y, n = random_pair(s=0.5)
    for t in (0.1, 0.5, 0.9):
        z = (1 - t) * y / 0.5 + t * n  # the interpolant; x / sigma_data is z / (1 - t)
        sigma = torch.tensor(0.5 * t / (1 - t), dtype=torch.float64)
        c = Scalings.at(sigma, 0.5, "flow")
        velocity = math.sqrt(2) * (y - c.c_skip * 0.5 * z / (1 - t)) / c.c_out
        torch.testing.assert_close(velocity, n - y / 0.5, rtol=1e-10, atol=1e-12)
        assert float(c.c_noise) == pytest.approx(t, rel=1e-12)


def test_sit_is_rectified_flow_backwards_and_unscaled():
    y, n = random_pair(s=1.0)
    for t in (0.1, 0.5, 0.9):  # z = t y + (1 - t) n, with the data at time 1
        sigma = torch.tensor((1 - t) / t, dtype=torch.float64)
        c = Scalings.at(sigma, 1.0, "sit")
        x = y + sigma * n
        torch.testing.assert_close(c.c_in * x, t * y + (1 - t) * n, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(c.c_skip * x + c.c_out * (y - n), y, rtol=1e-12, atol=1e-12)
        assert float(c.c_noise) == pytest.approx(t, rel=1e-12)


def test_steps_number_the_levels_of_ddpm_and_lie_between_them():
    sigmas = levels("linear")
    for s in (0.5, 1.0):
        at = Scalings.at(sigmas * s, s, "epsilon", "step").c_noise
        torch.testing.assert_close(at, torch.arange(1000.0).double(), rtol=0, atol=1e-9)
    float32 = Scalings.at(sigmas.float(), 1.0, "epsilon", "step").c_noise
    torch.testing.assert_close(float32, torch.arange(1000.0), rtol=0, atol=1e-4)
    between = (sigmas[500] * sigmas[501]).sqrt().reshape(1)
    assert Scalings.at(between, 1.0, "epsilon", "step").c_noise.item() == pytest.approx(500.5)
    ends = torch.tensor([1e-5, 1e5])
    assert Scalings.at(ends, 1.0, "epsilon", "step").c_noise.tolist() == [0, 999]


@pytest.mark.parametrize("form, embedding", BOUNDED)
def test_infinity_is_the_limit_of_large_levels(form, embedding):
    large, infinite = torch.tensor([1e9, math.inf]).double()
    near, at = (Scalings.at(x, 0.5, form, embedding) for x in (large, infinite))
    got = torch.stack([at.c_skip, at.c_out, at.c_in, at.c_noise])
    wanted = torch.stack([near.c_skip * large, near.c_out, near.c_in * large, near.c_noise])
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-8)  # what is left is of order 1/sigma


@pytest.mark.parametrize("kind", WEIGHTINGS)
def test_weightings_are_their_formulas(kind):
    for s in (0.5, 1.0):
        got = Weighting(kind=kind)(SIGMAS, s)
        np.testing.assert_allclose(got, LAMBDAS[kind](SIGMAS.numpy() / s) / s**2, rtol=1e-12)
    assert edm_weight(torch.tensor(1.0), 0.5) == 5
    at_infinity = LAMBDAS[kind](np.array(1e12))
    got = Weighting(kind=kind)(torch.tensor(math.inf).double(), 1.0)
    assert float(got) == pytest.approx(at_infinity, abs=1e-11)
    assert Weighting(kind=kind).vanishes_at_infinity() == (at_infinity < 1e-10)


def test_weights_convert_between_predictions_as_papers_list_them():
    sigma = SIGMAS.numpy()
    snr = 1 / sigma**2

    def on(prediction, s=1.0, **weighting):
        return weight_on(prediction, Weighting(**weighting)(SIGMAS, s), SIGMAS, s).numpy()

    for got, expected in [
        (on("epsilon", kind="epsilon"), np.ones(6)),
        (on("epsilon", kind="x0"), sigma**2),
        (on("epsilon", kind="min_snr"), np.minimum(1, 5 / snr)),
        (on("v", kind="min_snr"), np.minimum(snr, 5) / (snr + 1)),
        (on("v", kind="snr_plus_one"), np.ones(6)),
        (on("epsilon", kind="sigmoid", bias=-1.5), 1 / (1 + np.exp(1.5 - 2 * np.log(sigma)))),
        (on("edm", s=0.5, kind="edm"), np.ones(6)),
        (on("edm", s=0.5, kind="epsilon"), 0.25 / (sigma**2 + 0.25)),
        (on("edm", s=0.5, kind="soft_min_snr"), (sigma * 0.5 / (sigma**2 + 0.25)) ** 2),
        (on("flow", kind="flow"), 2 * np.ones(6)),  # of F, sqrt(2) below the velocity
    ]:
        np.testing.assert_allclose(got, expected, rtol=1e-10)
    # sigmoid is soft-min-SNR at bias 0; in units of the data that is the paper's -2 ln sigma_data
    same = Weighting(kind="sigmoid")(SIGMAS, 0.5)
    np.testing.assert_allclose(same, Weighting(kind="soft_min_snr")(SIGMAS, 0.5), rtol=1e-12)
    np.testing.assert_allclose(same, 1 / (sigma**2 + np.exp(2 * np.log(0.5))), rtol=1e-12)


@pytest.mark.parametrize("a, b", list(itertools.combinations(FORMS, 2)))
def test_the_same_loss_in_the_space_of_any_prediction(a, b):
    y, n = random_pair()
    D = 0.7 * y + 0.1 * n
    for sigma, kind in itertools.product(SIGMAS, WEIGHTINGS):
        x = y + sigma * n
        weight = Weighting(kind=kind)(sigma, 0.5)
        losses = []
        for form in (a, b):
            c = Scalings.at(sigma, 0.5, form)
            F, target = ((v - c.c_skip * x) / c.c_out for v in (D, y))
            losses.append(weight_on(form, weight, sigma, 0.5) * (F - target).square().mean())
        losses.append(weight * (D - y).square().mean())
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-10, atol=0)
        torch.testing.assert_close(losses[0], losses[2], rtol=1e-10, atol=0)
