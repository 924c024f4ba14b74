"""Oracles: mpmath at 50 digits, numerical integration, and the vectors of facts 3.1 and 10."""

import mpmath
import numpy as np
import pytest
from scipy.integrate import quad

from edm2lite.ema.profile import (
    SIGMA_REL_MAX,
    Exponential,
    PowerFunction,
    Tabulated,
    Window,
    decay,
    gamma_to_sigma_rel,
    inner_product,
    sigma_rel_to_gamma,
)

TABLE = {
    0.01: 96.9949, 0.015: 63.6589, 0.02: 46.9896, 0.03: 30.3174, 0.05: 16.9722, 0.075: 10.2891,
    0.10: 6.9372, 0.13: 4.6036, 0.15: 3.5579, 0.20: 1.8262, 0.25: 0.7198, 0.28: 0.1693,
}  # fmt: skip


def test_exponents_match_the_published_table():
    got = sigma_rel_to_gamma(list(TABLE))
    np.testing.assert_allclose(got, list(TABLE.values()), atol=5.1e-5)


@pytest.mark.parametrize("sigma_rel", [1e-4, 0.003, 0.01, 0.05, 0.1, 0.2, 0.25, 0.28, 0.2886])
def test_exponent_is_the_largest_root_of_the_cubic(sigma_rel):
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


def test_decay_vectors():
    gamma = sigma_rel_to_gamma(0.05)
    assert decay(gamma, 2, 1) == pytest.approx(3.88892e-6, rel=1e-5)
    assert decay(gamma, 10, 1) == pytest.approx(0.150535, rel=1e-5)
    assert decay(gamma, 1000, 1) == pytest.approx(0.98217951, rel=1e-8)
    assert decay(gamma, 128, 128) == 0


def test_inner_product_vectors():
    g5, g10 = sigma_rel_to_gamma([0.05, 0.10])
    assert inner_product(1, g5, 1, g5) == pytest.approx(9.24325352, rel=1e-9)
    assert inner_product(2, g5, 2, g5) == pytest.approx(4.62162676, rel=1e-9)
    assert inner_product(1, g5, 2, g10) == pytest.approx(0.0233651714, rel=1e-8)


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


def test_tabulated_profile_spreads_each_weight_over_its_stretch():
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
