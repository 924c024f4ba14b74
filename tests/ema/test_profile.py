"""Oracles: mpmath at 50 digits, numerical integration, and small cases worked out by hand.

Equations are those of arXiv 2312.02696, "Analyzing and Improving the Training Dynamics of Diffusion
Models".
"""

import itertools

import mpmath
import numpy as np
import pytest
from scipy.integrate import quad

from edm2lite.ema.formulas import (
    SIGMA_REL_MAX,
    decay,
    gamma_to_sigma_rel,
    inner_product,
    sigma_rel_to_gamma,
)
from edm2lite.ema.profile import Exponential, PowerFunction, Tabulated, Window


def test_exponents_are_those_that_the_paper_states():
    """Section 3.1: the widths 0.05 and 0.10 that are tracked in training are gamma 16.97, 6.94."""
    np.testing.assert_allclose(sigma_rel_to_gamma([0.05, 0.10]), [16.97, 6.94], atol=5e-3)


@pytest.mark.parametrize(
    "sigma_rel",
    [1e-4, 0.003, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.13, 0.15, 0.2, 0.25, 0.28, 0.2886],
)
def test_exponent_is_the_largest_root_of_the_cubic(sigma_rel):
    """Eq. 126, gamma**3 + 7 gamma**2 + (16 - t) gamma + 12 - t = 0 with t = sigma_rel**-2."""
    with mpmath.workdps(50):
        t = mpmath.mpf(sigma_rel) ** -2
        roots = mpmath.polyroots([1, 7, 16 - t, 12 - t], maxsteps=500, extraprec=500)
        exact = max(mpmath.re(r) for r in roots if abs(mpmath.im(r)) < 1e-30)
        error = abs(mpmath.mpf(float(sigma_rel_to_gamma(sigma_rel))) - exact)
    # relative to gamma + 1, the exponent that acts; near gamma = 0 gamma itself cancels
    assert error / (exact + 1) < 1e-13


def test_width_and_exponent_invert_each_other():
    sigma_rel = np.linspace(1e-3, 0.2886, 500)
    back = gamma_to_sigma_rel(sigma_rel_to_gamma(sigma_rel))
    np.testing.assert_allclose(back, sigma_rel, rtol=1e-13)


@pytest.mark.parametrize("bad", [0.0, -0.1, SIGMA_REL_MAX, 0.3, 0.4, np.nan, np.inf])
def test_width_out_of_range_is_refused(bad):
    with pytest.raises(ValueError, match="sigma_rel must lie between 0 and 0.2887"):
        sigma_rel_to_gamma([0.1, bad])


@pytest.mark.parametrize("bad", [-0.5, np.nan, np.inf])
def test_exponent_out_of_range_is_refused(bad):
    with pytest.raises(ValueError, match="gamma must be finite and at least 0"):
        gamma_to_sigma_rel(bad)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.25])
def test_width_and_mean_are_those_of_the_integrated_profile(sigma_rel):
    profile = PowerFunction.of_width(sigma_rel, 1000)

    def density(t):
        return (profile.gamma + 1) * t**profile.gamma

    mean = quad(lambda t: t * density(t), 0, 1)[0]
    std = np.sqrt(quad(lambda t: (t - mean) ** 2 * density(t), 0, 1)[0])
    assert mean == pytest.approx(profile.mean_rel, rel=1e-10)
    assert std == pytest.approx(sigma_rel, rel=1e-7)
    assert profile.sigma_rel == pytest.approx(sigma_rel, rel=1e-13)


def test_decays_worked_out_by_hand():
    """(1 - stride / nimg)**(gamma + 1), Eq. 127, for exponents that are whole numbers."""
    np.testing.assert_allclose(decay([0, 1, 2], 10, 1), [0.9, 0.81, 0.729], rtol=1e-15)
    assert decay(1, 100, 50) == 0.25
    assert decay(16.97, 128, 128) == 0


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.25])
def test_updates_with_these_decays_give_each_step_its_share_of_the_profile(sigma_rel):
    """The recursion average <- beta average + (1 - beta) theta, with strides of many sizes.

    Weights are constant over a stride, so each must end with the mass of the profile over it.
    """
    profile = PowerFunction.of_width(sigma_rel, 1000)
    ends = np.array([1, 2, 5, 64, 65, 128, 400, 900, 1000])
    share = np.zeros(len(ends))
    for k, (begin, end) in enumerate(itertools.pairwise([0, *ends])):
        beta = decay(profile.gamma, end, end - begin)
        share *= beta
        share[k] += 1 - beta
    power = mpmath.mpf(profile.gamma)
    mass = [
        float(mpmath.quad(lambda t: t**power, [a, b]) * (power + 1) / 1000 ** (power + 1))
        for a, b in itertools.pairwise([0, *ends.tolist()])
    ]
    np.testing.assert_allclose(share, mass, rtol=1e-12)


def test_inner_products_worked_out_by_hand():
    # the mean of a run of 4 images with itself: 4 * (1/4)**2
    assert inner_product(4, 0, 4, 0) == 0.25
    # 2 t on [0, 1] and 3 t**2 / 8 on [0, 2]: the integral of 3/4 t**3 over [0, 1]
    assert inner_product(1, 1, 2, 2) == pytest.approx(3 / 16, rel=1e-15)
    assert inner_product(2, 2, 1, 1) == pytest.approx(3 / 16, rel=1e-15)


@pytest.mark.parametrize("t_a, t_b", [(3.0, 7.0), (7.0, 3.0), (5.0, 5.0)])
def test_inner_product_is_the_integral_of_the_product(t_a, t_b):
    g_a, g_b = (mpmath.mpf(float(g)) for g in sigma_rel_to_gamma([0.05, 0.2]))

    def density(t, gamma, end):
        return (gamma + 1) * t**gamma / mpmath.mpf(end) ** (gamma + 1)

    exact = mpmath.quad(lambda t: density(t, g_a, t_a) * density(t, g_b, t_b), [0, min(t_a, t_b)])
    got = inner_product(t_a, float(g_a), t_b, float(g_b))
    assert got == pytest.approx(float(exact), rel=1e-12)


def test_inner_product_survives_image_counts_whose_powers_overflow():
    value = inner_product(2e9, 97.0, 2e9, 97.0)
    assert value == pytest.approx(98**2 / 195 / 2e9, rel=1e-12)


@pytest.mark.parametrize(
    "profile",
    [
        PowerFunction(6.94, 1000),
        Exponential(100.0, 1000),
        Window(250.0, 1000),
        Tabulated(np.array([1.0, 3.0, 2.0]), 1000),
    ],
)
def test_cumulative_weight_rises_to_one(profile):
    t = np.linspace(0, 1500, 301)
    p = profile.cumulative(t)
    assert np.all(np.diff(p) >= 0) and np.all(p >= 0)
    np.testing.assert_allclose(p[t >= 1000], 1)


def test_tabulated_profile_spreads_each_weight_over_its_piece():
    profile = Tabulated(np.array([1.0, 3.0]), 100)
    np.testing.assert_allclose(profile.cumulative(np.array([25.0, 50, 75])), [0.125, 0.25, 0.625])


@pytest.mark.parametrize(
    "make",
    [
        lambda: PowerFunction(6.9, 0),
        lambda: PowerFunction(-1.0, 10),
        lambda: Exponential(0.0, 10),
        lambda: Window(11.0, 10),
        lambda: Tabulated(np.array([1.0, -1.0]), 10),
        lambda: Tabulated(np.ones((2, 2)), 10),
    ],
)
def test_unusable_profiles_are_refused(make):
    with pytest.raises(ValueError, match="must"):
        make()
