"""Guidance against formulas written out; which steps are guided, counted."""

import functools
import math

import pytest
import torch

from edm2lite.network.conditioning import Conditioning
from edm2lite.sampling.editing import Inpaint
from edm2lite.sampling.guidance import APG, Conditioned, Guided, Mixed, Rescale
from edm2lite.sampling.levels import interval_steps, karras_sigmas, user_sigmas
from edm2lite.sampling.solvers import dpmpp_2m, euler, heun

SHAPE = (3, 2, 4, 4)


def shrink(factor, calls=None):
    """A denoiser ``factor * x / (1 + sigma^2)``, which writes down the noise levels it sees."""

    def denoise(x, sigma):
        if calls is not None:
            calls.append(float(sigma))
        return factor * x / (1 + sigma**2)

    return denoise


def test_guidance_is_its_formula_for_any_sampler():
    x, sigmas = torch.randn(SHAPE, dtype=torch.float64) * 80, karras_sigmas(8)
    guided = Guided(shrink(0.9), shrink(0.4), weight=1.7)
    for sampler in (euler, heun, dpmpp_2m):
        # D_main + 0.7 (D_main - D_guide) has the factor 0.9 + 0.7 * 0.5
        torch.testing.assert_close(
            sampler(guided, x, sigmas), sampler(shrink(1.25), x, sigmas), rtol=1e-12, atol=1e-12
        )


def test_weight_one_never_calls_the_guide():
    def guide(x, sigma):
        raise AssertionError("called")

    x = torch.randn(SHAPE)
    expected = heun(shrink(0.9), x, karras_sigmas(8))
    assert torch.equal(heun(Guided(shrink(0.9), guide, weight=1), x, karras_sigmas(8)), expected)


@pytest.mark.parametrize(
    "bounds, steps",
    # as printed in arXiv 2404.07724, and the steps of 32 that were meant
    [
        ((0.19, 1.61), (17, 22)),
        ((0.28, 2.90), (15, 21)),
        ((0.60, 5.00), (13, 19)),
        ((0, math.inf), (0, 31)),
        ((0, 2.9), (15, 31)),
        ((0.002, 80), (0, 30)),
    ],
)
def test_printed_intervals_mean_the_steps_that_were_meant(bounds, steps):
    assert interval_steps(karras_sigmas(32), *bounds) == steps


def test_an_interval_without_a_step_is_refused():
    with pytest.raises(ValueError, match="must hold a step"):
        interval_steps(karras_sigmas(4), 9.9, 10.0)
    with pytest.raises(ValueError, match="low,high"):
        interval_steps(karras_sigmas(4), 2.0, 1.0)
    assert interval_steps(user_sigmas([math.inf, 10, 1]), 5.0, math.inf) == (0, 0)


def test_the_guide_is_called_in_its_steps_only_twice_for_heun():
    main, guide = [], []
    sigmas = karras_sigmas(32)
    guided = Guided(shrink(0.9, main), shrink(0.5, guide), weight=2, interval=(17, 22))
    heun(guided, torch.randn(SHAPE), sigmas)
    # steps 17 to 22, and both evaluations of a step: its own level and the next
    expected = [float(sigmas[i + k].float()) for i in range(17, 23) for k in (0, 1)]
    assert guide == expected and len(main) == 63
    guide.clear()
    dpmpp_2m(guided, torch.randn(SHAPE), sigmas)
    assert guide == expected[::2]


def test_the_corrector_before_the_interval_is_not_guided():
    """It evaluates at the level where the interval begins: a test by noise level would guide it."""
    sigmas, x = user_sigmas([8, 4, 2, 1]), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    got = heun(Guided(shrink(0.9), shrink(0.4), weight=3, interval=(1, 1)), x, sigmas)
    factors = [0.9, 0.9 + 2 * 0.5, 0.9, 0.9]
    for i, factor in enumerate(factors):
        x = heun(shrink(factor), x, sigmas[i : i + 2])
    torch.testing.assert_close(got, x, rtol=1e-14, atol=0)


def test_one_network_is_called_once_for_both():
    shapes = []

    def net(x, sigma, told):
        labels = told["label"]
        shapes.append(tuple(x.shape))
        return x * (labels + 2).reshape(-1, 1, 1, 1) / 10

    main = Conditioned(net, Conditioning.of(torch.tensor([0, 1, 2])))
    null = Conditioning.of(torch.tensor([-1, -1, -1]))
    pair = main, main.unconditional()
    x = torch.randn(SHAPE)
    together = euler(Guided(*pair, weight=1.5), x, user_sigmas([2, 1]))
    assert shapes == [(6, 2, 4, 4)] * 2
    apart = euler(
        Guided(pair[0], lambda x, sigma: net(x, sigma, null), weight=1.5),
        x, user_sigmas([2, 1]),
    )  # fmt: skip
    torch.testing.assert_close(together, apart)


def test_guidance_of_a_single_call_is_refused_where_it_depends_on_the_step():
    x, sigma = torch.randn(SHAPE, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    D_main, D_guide = 0.9 * x / 1.49, 0.4 * x / 1.49  # 1 + sigma^2
    got = Guided(shrink(0.9), shrink(0.4), 3.0)(x, sigma)
    torch.testing.assert_close(got, D_main + 2 * (D_main - D_guide), rtol=1e-13, atol=0)
    for more in ({"interval": (0, 1)}, {"apg": APG(momentum=-0.5)}):
        with pytest.raises(ValueError, match="must take its denoisers from each_step"):
            Guided(shrink(0.9), shrink(0.4), 3.0, **more)(x, sigma)


def test_a_mixed_guide_combines_two_kinds_of_guidance():
    x, sigma = torch.randn(SHAPE, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    main, free, weak = shrink(0.9), shrink(0.2), shrink(0.6)
    step = next(Guided(main, Mixed(free, weak, share=0.25), weight=3.0).per_step())
    D, D_u, D_c = main(x, sigma), free(x, sigma), weak(x, sigma)
    # w_u - 1 = (1 - share) (w - 1) and w_c - 1 = share (w - 1)
    expected = D + 1.5 * (D - D_u) + 0.5 * (D - D_c)
    torch.testing.assert_close(step(x, sigma), expected, rtol=1e-13, atol=0)


def test_rescaling_restores_the_deviation_of_the_output_in_its_own_space():
    torch.manual_seed(1)
    x, sigma = torch.randn(SHAPE, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    D_main, D_guide = torch.randn(SHAPE).double(), torch.randn(SHAPE).double()
    c_skip, c_out = 0.25 / (0.49 + 0.25), 0.7 * 0.5 / math.sqrt(0.49 + 0.25)

    def output(D):
        return (D - c_skip * x) / c_out

    D_x = D_main + 2 * (D_main - D_guide)
    F_main, F_x = output(D_main), output(D_x)
    for share in (0.0, 0.7, 1.0):
        step = Guided(
            lambda x, sigma: D_main, lambda x, sigma: D_guide, 3.0, rescale=Rescale(share=share)
        )
        got = output(next(step.per_step())(x, sigma))
        for i in range(3):
            scaled = F_x[i] * F_main[i].std() / F_x[i].std()
            expected = share * scaled + (1 - share) * F_x[i]
            torch.testing.assert_close(got[i], expected, rtol=1e-12, atol=1e-12)


def test_projection_limits_and_splits_the_difference():
    torch.manual_seed(2)
    D_main, delta = torch.randn(SHAPE).double(), torch.randn(SHAPE).double() * 5
    got = APG(parallel=0.3, max_norm=2.0)(delta, D_main)
    for i in range(3):
        limited = delta[i] * min(1, 2.0 / delta[i].norm())
        unit = D_main[i] / D_main[i].norm()
        along = (limited * unit).sum() * unit
        torch.testing.assert_close(got[i], limited - along + 0.3 * along, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(APG(parallel=1.0)(delta, D_main), delta)
    assert (APG()(delta, D_main) * D_main).sum((1, 2, 3)).abs().max() < 1e-12


def test_momentum_runs_once_per_step():
    """Differences of the evaluations are 1, 2, 4, ...; Heun evaluates twice in the first steps."""
    count = iter(range(100))
    D = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    seen = []

    def main(x, sigma):
        return D

    def guide(x, sigma):
        return D - 2.0 ** next(count)

    guided = Guided(main, guide, 2.0, apg=APG(parallel=1.0, momentum=-0.5))

    class Watched:
        def per_step(self):
            return (functools.partial(self.watch, step) for step in guided.per_step())

        def watch(self, step, x, sigma):
            seen.append(step(x, sigma).item())
            return D

    heun(Watched(), D, user_sigmas([4, 2, 1]))
    # step 0 has 1 and 2, step 1 has 4 and 8, step 2 has 16. Sums: 1, 4 - 0.5, 16 - 0.5 * 3.5
    assert seen == [1, 2, 4 - 0.5, 8 - 0.5, 16 - 1.75]
    seen.clear()
    euler(Watched(), D, user_sigmas([4]))  # a new run starts without a memory
    assert seen == [2.0**5]


@pytest.mark.parametrize("sampler", [euler, heun, dpmpp_2m])
def test_known_pixels_are_kept_on_the_way_and_at_the_end(sampler):
    known = torch.randn(SHAPE, dtype=torch.float64)
    mask = torch.zeros(4, 4)
    mask[:2] = 1
    noise = torch.randn(SHAPE, dtype=torch.float64)
    sigmas = karras_sigmas(8)
    seen = []

    def denoise(x, sigma):
        seen.append((x, sigma))
        return x / (1 + sigma**2)

    x = known + sigmas[0] * noise
    got = sampler(Inpaint(Guided(denoise, denoise, 2.0), known, mask), x, sigmas)
    assert torch.equal(got[:, :, 2:], known[:, :, 2:])
    for x, sigma in seen:  # all with the noise of the beginning, up to rounding at 80
        expected = (known + sigma * noise)[:, :, 2:]
        torch.testing.assert_close(x[:, :, 2:], expected, rtol=1e-11, atol=1e-11)
    free = sampler(denoise, known + sigmas[0] * noise, sigmas)  # pixel by pixel, as denoise is
    torch.testing.assert_close(got[:, :, :2], free[:, :, :2])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Guided(shrink(1), shrink(1), math.nan), "finite"),
        (lambda: Guided(shrink(1), shrink(1), 2.0, interval=(5, 3)), "first and last"),
        (lambda: Rescale(share=1.5), "rescale"),
        (lambda: APG(max_norm=0), "limit"),
        (lambda: APG(momentum=-1.0), "momentum"),
    ],
)
def test_unusable_guidance_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
