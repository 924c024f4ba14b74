"""Densities of noise levels and discrete schedules against their definitions."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from edm2lite.diffusion.ddpm import BETAS, DDPM, levels, trailing_sigmas
from edm2lite.diffusion.noise_density import DENSITIES, LogitNormal, LogNormal, LogUniform
from edm2lite.diffusion.quantile_densities import VP, Cosine, Mode
from edm2lite.sampling import Sampling

CONTINUOUS = [
    LogNormal(P_mean=-0.8, P_std=1.6),
    LogNormal(shift=3.0),
    LogUniform(),
    LogitNormal(m=0.5, s=1.2, shift=0.5),
    Cosine(),
    Cosine(shift=0.5),
    VP(),
    VP(beta_min=0.5, beta_d=5.0, shift=2.0),
    Mode(),
    Mode(s=-1.0),
    Mode(s=0.0),
    Mode(s=2 / (math.pi - 2)),
]


def breaks_of(density):
    """Where the density jumps."""
    ends = []
    if isinstance(density, LogUniform):
        ends = [math.log(density.sigma_min), math.log(density.sigma_max)]
    if isinstance(density, VP):
        ends = [math.log(math.expm1(density.beta_d / 2 + density.beta_min)) / 2]
    return [end + math.log(density.shift) for end in ends]


def masses(density, cuts):
    """Probability of ln sigma between neighbors of the ascending ``cuts``.

    Gauss-Legendre in y with ln sigma = y**3, which is smooth where mode has its pole.
    """
    nodes, weights = np.polynomial.legendre.leggauss(20)
    y = np.cbrt(cuts)
    middle, half = (y[1:] + y[:-1])[:, None] / 2, np.diff(y)[:, None] / 2
    at = middle + half * nodes
    values = density.pdf(torch.from_numpy(at**3)).numpy() * 3 * at**2
    return (half * weights * values).sum(1)


def cuts_of(density, low=-60.0, high=60.0, num=600):
    """Ascending, with the jumps among them; below e^-60 lies less than 1e-12."""
    fine = np.linspace(np.cbrt(low), np.cbrt(high), num) ** 3
    return np.unique([*fine, *(b for b in breaks_of(density) if low < b < high)])


def test_every_kind_is_tested():
    assert {type(d) for d in CONTINUOUS} | {DDPM} == set(map(DENSITIES.find, DENSITIES))
    assert all(DENSITIES.find(kind)().kind == kind for kind in DENSITIES)


@pytest.mark.parametrize("density", CONTINUOUS, ids=str)
def test_density_integrates_to_one(density):
    # at a jump rounding decides on which side a node falls
    assert masses(density, cuts_of(density)).sum() == pytest.approx(1, abs=1e-9)
    assert density.mass_at_infinity == 0


@pytest.mark.parametrize("density", CONTINUOUS, ids=str)
def test_samples_follow_the_density(density):
    z = torch.randn(20_000, generator=torch.Generator().manual_seed(5))
    sigma = density.sigma(z)
    assert sigma.dtype == z.dtype and sigma.isfinite().all() and (sigma > 0).all()
    assert (sigma[z.argsort()].diff() >= 0).all()
    cuts = cuts_of(density, num=3000)
    cdf = np.concatenate([[0], masses(density, cuts).cumsum()])
    log_sigma = sigma.double().log().numpy()
    test = stats.kstest(log_sigma, lambda x: np.interp(np.cbrt(x), np.cbrt(cuts), cdf))
    assert test.pvalue > 0.01, test  # the seed is fixed; 1 % of P_std off would give 0.01


@pytest.mark.parametrize("density", CONTINUOUS, ids=str)
def test_quantiles_hold_far_out_in_both_tails(density):
    """Mass beyond sigma(z) is Phi(-|z|), 5 standard deviations out: as far as samples reach."""
    low, high = density.sigma(torch.tensor([-5.0, 5.0]).double()).log().tolist()
    below = masses(density, cuts_of(density, low=-90, high=low)).sum()
    above = masses(density, cuts_of(density, low=high, high=90)).sum()
    # 1 - u = 3e-7 is known to 4e-10 of itself in float64
    np.testing.assert_allclose([below, above], stats.norm.cdf(-5), rtol=1e-6)


def test_densities_equal_their_published_forms():
    x = torch.linspace(-6, 6, 49).double()
    sigma = x.exp()
    forms = [
        (Cosine(), 2 / math.pi * sigma / (1 + sigma**2)),
        (Mode(s=0), sigma / (1 + sigma) ** 2),  # uniform t of rectified flow
        (VP(), 2 * sigma**2 / ((1 + sigma**2) * (0.01 + 39.8 * (1 + sigma**2).log()).sqrt())),
        (LogitNormal(m=0.3, s=0.7), torch.exp(-(((x - 0.3) / 0.7) ** 2) / 2) / 0.7 / math.tau**0.5),
    ]
    for density, expected in forms:
        seen = x < 5  # the VP schedule ends at ln 152
        torch.testing.assert_close(density.pdf(x)[seen], expected[seen], rtol=1e-9, atol=1e-15)


def test_levels_are_published_functions_of_u():
    z = torch.linspace(-3, 3, 25).double()
    u = torch.special.ndtr(z)
    torch.testing.assert_close(Cosine().sigma(z), torch.tan(math.pi / 2 * u))
    torch.testing.assert_close(VP().sigma(z), (torch.exp(9.95 * u**2 + 0.1 * u) - 1).sqrt())
    # the paper's u runs the other way: t falls from 1 to 0
    t = 1 - u - 1.29 * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)
    torch.testing.assert_close(Mode(s=1.29).sigma(-z), t / (1 - t))
    sigma = LogitNormal(m=0.2, s=1.1).sigma(z)
    torch.testing.assert_close(torch.logit(sigma / (1 + sigma)), 0.2 + 1.1 * z)


def test_shift_moves_levels_as_between_resolutions():
    z = torch.linspace(-3, 3, 25).double()
    for density in (Cosine(), Mode(), LogUniform(), DDPM()):
        t = density.sigma(z) / (1 + density.sigma(z))
        shifted = type(density)(shift=3.0).sigma(z)
        torch.testing.assert_close(shifted / (1 + shifted), 3 * t / (1 + 2 * t))
    moved = LogNormal(P_mean=-0.4 + math.log(3.0)).sigma(z)
    torch.testing.assert_close(LogNormal(shift=3.0).sigma(z), moved)


U = stats.norm.cdf(1)  # 0.8413: location() is about the quantiles of u at 1 - U, 0.5 and U


def _mode(u, s):
    """sigma at a quantile, from t(u) of arXiv 2403.03206, there with u running the other way."""
    v = 1 - u
    t = 1 - v - s * (np.cos(np.pi / 2 * v) ** 2 - 1 + v)
    return t / (1 - t)


@pytest.mark.parametrize(
    "density, median, low, high",
    [
        (LogNormal(P_mean=-0.8, P_std=1.6), np.exp(-0.8), np.exp(-2.4), np.exp(0.8)),
        (LogNormal(shift=3.0), 3 * np.exp(-0.4), 3 * np.exp(-1.4), 3 * np.exp(0.6)),
        (LogitNormal(m=0.5, s=1.2, shift=0.5), np.exp(0.5) / 2, np.exp(-0.7) / 2, np.exp(1.7) / 2),
        # the geometric mean, and powers of the ratio 5000 from there
        (LogUniform(), 2**0.5, 2**0.5 * 5000 ** (0.5 - U), 2**0.5 * 5000 ** (U - 0.5)),
        (Cosine(), 1, np.tan(np.pi / 2 * (1 - U)), np.tan(np.pi / 2 * U)),
        (Cosine(shift=0.5), 0.5, np.tan(np.pi / 2 * (1 - U)) / 2, np.tan(np.pi / 2 * U) / 2),
        (
            VP(),
            np.sqrt(np.expm1(19.9 / 8 + 0.05)),
            np.sqrt(np.expm1(9.95 * (1 - U) ** 2 + 0.1 * (1 - U))),
            np.sqrt(np.expm1(9.95 * U**2 + 0.1 * U)),
        ),
        (Mode(s=0.0), 1, (1 - U) / U, U / (1 - U)),  # t is uniform
        (Mode(), 1, _mode(1 - U, 1.29), _mode(U, 1.29)),
    ],
    ids=str,
)
def test_location_is_the_median_and_half_the_middle_range(density, median, low, high):
    middle, half = density.location()
    assert middle == pytest.approx(np.log(median), rel=1e-10, abs=1e-12)
    assert half == pytest.approx(np.log(high / low) / 2, rel=1e-10)


def test_location_of_a_table_that_ends_in_pure_noise_is_finite():
    assert np.isfinite(DDPM(num_levels=3, zero_terminal_snr=True).location()).all()


def test_schedule_of_stable_diffusion_has_its_published_ends():
    sd = levels("scaled_linear")
    assert sd[0].item() == pytest.approx(0.0292, abs=5e-5)
    assert sd[-1].item() == pytest.approx(14.61, abs=5e-3)
    assert (1 / (1 + sd[-1] ** 2).sqrt()).item() == pytest.approx(0.068265, abs=5e-7)
    assert (1 / sd[-1] ** 2).item() == pytest.approx(0.004682, abs=5e-7)


def test_schedules_are_the_products_of_their_betas():
    beta = np.linspace(1e-4, 0.02, 1000)
    a = np.cumprod(1 - beta)
    np.testing.assert_allclose(levels("linear"), np.sqrt((1 - a) / a), rtol=1e-10)
    t = (np.arange(1001) / 1000 + 0.008) / 1.008
    a = np.cos(np.pi / 2 * t) ** 2
    a = np.cumprod(1 - np.minimum(1 - a[1:] / a[:-1], 0.999))
    np.testing.assert_allclose(levels("cosine"), np.sqrt((1 - a) / a), rtol=1e-10)


def test_zero_terminal_snr_keeps_the_first_level_and_ends_in_pure_noise():
    sd, rescaled = levels("scaled_linear"), levels("scaled_linear", zero_terminal_snr=True)
    assert rescaled[0].item() == pytest.approx(sd[0].item(), rel=1e-10)
    np.testing.assert_allclose(rescaled[-5:-1], [560, 748, 1125, 2254], rtol=2e-3)
    assert rescaled[-1] == math.inf
    a = 1 / (1 + sd**2).sqrt()  # 2305.08891, written out
    a = (a - a[-1]) * a[0] / (a[0] - a[-1])
    torch.testing.assert_close(rescaled[:-1], ((1 - a**2).sqrt() / a)[:-1], rtol=1e-9, atol=0)
    for schedule in ("linear", "cosine"):
        found = levels(schedule, 100, beta_end=None, zero_terminal_snr=True)
        assert found[-1] == math.inf and found[:-1].isfinite().all() and (found.diff() > 0).all()


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_ddpm_draws_every_level_equally_often(zero_terminal_snr):
    density = DDPM(num_levels=20, zero_terminal_snr=zero_terminal_snr, shift=0.5)
    table = density.levels() * 0.5
    sigma = density.sigma(torch.randn(20_000, generator=torch.Generator().manual_seed(6)).double())
    counts = (sigma[:, None] == table).sum(0)
    assert counts.sum() == 20_000 and stats.chisquare(counts).pvalue > 0.01
    assert density.mass_at_infinity == (0.05 if zero_terminal_snr else 0)
    grid = torch.linspace(-12, 12, 200_001).double()
    area = torch.trapezoid(density.pdf(grid), grid)
    assert area.item() == pytest.approx(1 - density.mass_at_infinity, abs=1e-3)  # steps on a grid


@pytest.mark.parametrize("has_pure_noise", [False, True])
@pytest.mark.parametrize("beta", ["linear", "scaled_linear"])
def test_trailing_schedules_are_those_of_diffusers(beta, has_pure_noise):
    from diffusers import DDIMScheduler

    first, last = BETAS[beta]
    theirs = DDIMScheduler(
        beta_start=first, beta_end=last, beta_schedule=beta, timestep_spacing="trailing",
        rescale_betas_zero_snr=has_pure_noise,
    )  # fmt: skip
    theirs.set_timesteps(7)
    a = theirs.alphas_cumprod[theirs.timesteps].double()  # made in float32
    name = "trailing" if beta == "linear" else "trailing_scaled_linear"
    sampling = Sampling(schedule=name, num_steps=7, sigma_max=math.inf if has_pure_noise else 1e9)
    ours = sampling.levels()
    assert torch.allclose(ours[:-1], ((1 - a) / a).sqrt(), rtol=1e-4) and ours[-1] == 0


def test_trailing_steps_begin_at_the_last_level():
    rescaled = levels("scaled_linear", zero_terminal_snr=True)
    sigmas = trailing_sigmas(rescaled, 4)
    assert sigmas.tolist() == [math.inf, *rescaled[[749, 499, 249]].tolist(), 0]
    assert trailing_sigmas(rescaled, 1).tolist() == [math.inf, 0]
    assert trailing_sigmas(rescaled, 1000).equal(torch.cat([rescaled.flip(0), torch.zeros(1)]))
    thirds = trailing_sigmas(rescaled, 3)  # 1000, 666.7, 333.3
    assert thirds[1:3].equal(rescaled[[666, 332]])
    for bad in (0, 1001):
        with pytest.raises(ValueError, match="1 to 1000"):
            trailing_sigmas(rescaled, bad)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: LogNormal(P_std=0), "P_std must be positive"),
        (lambda: LogNormal(shift=-1), "shift must be positive"),
        (lambda: LogUniform(sigma_min=2, sigma_max=1), "sigma_min < sigma_max"),
        (lambda: Mode(s=2), "1.7519"),
        (lambda: DDPM(num_levels=2), "at least 3"),
        (lambda: DDPM(schedule="cosine", beta_end=0.1), "belong to linear"),
        (lambda: DDPM(beta_start=0.5, beta_end=0.1), "beta_start < beta_end"),
        (lambda: DDPM(schedule="sd"), "linear, scaled_linear, cosine"),
    ],
)
def test_impossible_densities_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
