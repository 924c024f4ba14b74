"""Oracles: exact arithmetic for Algorithm 3 of arXiv 2312.02696, dense sums, simulated walks."""

import mpmath
import numpy as np
import pytest

from edm2lite.ema.formulas import sigma_rel_to_gamma
from edm2lite.ema.profile import Exponential, PowerFunction, Tabulated, Window
from edm2lite.ema.solve import (
    Solution,
    minimum_error_coefficients,
    predicted_error,
    solve_calibrated,
    solve_paper,
)
from edm2lite.ema.trajectory import TrajectoryModel
from edm2lite.ema.trajectory_fit import fit_trajectory

END = 960


def stored(lengths, cadence, end=END):
    step = end // cadence
    return [PowerFunction.of_width(s, t) for t in range(step, end + 1, step) for s in lengths]


def flat_model(walk=1.0, white=0.0, drift=0.0):
    """Rates that do not change, exact tracker."""
    one = np.ones(1)
    return TrajectoryModel(END, 1, np.zeros(0), walk * one, white * one, 0 * one, drift)


def masses(profiles, end=END):
    """[K, end] weight of every unit of time."""
    return np.stack([np.diff(p.cumulative(np.arange(end + 1))) for p in profiles])


def random_walk(seed, n=4000, end=END):
    rng = np.random.default_rng(seed)
    steps = 0.5 * rng.standard_normal((end, n)) / np.sqrt(end)
    return rng.standard_normal(n) + np.cumsum(steps, axis=0)


def test_paper_coefficients_agree_with_exact_arithmetic():
    """Algorithm 3 with the inner products of Eq. 151; its sum, here 0.98, is divided out."""
    sources = [PowerFunction.of_width(s, t) for s in (0.05, 0.10) for t in (1, 2, 3, 4)]
    target = PowerFunction.of_width(0.13, 4)
    with mpmath.workdps(40):

        def product(a, b):
            a, b = sorted((a, b), key=lambda p: p.nimg)
            ga, gb = mpmath.mpf(a.gamma), mpmath.mpf(b.gamma)
            ratio = mpmath.mpf(a.nimg) / b.nimg
            return (ga + 1) * (gb + 1) * ratio**gb / ((ga + gb + 1) * b.nimg)

        gram = mpmath.matrix([[product(a, b) for b in sources] for a in sources])
        right = mpmath.matrix([product(a, target) for a in sources])
        exact = mpmath.lu_solve(gram, right)
        total = mpmath.fsum(exact)
        exact = exact / total
        square = product(target, target)
        residual = mpmath.fdot(exact, gram * exact) - 2 * mpmath.fdot(exact, right) + square
        profile_error = float(mpmath.sqrt(residual / square))
        exact = [float(v) for v in exact]
    assert 0.97 < total < 0.99
    solution = solve_paper(sources, [target])
    # condition of the Gram matrix is 5e2
    np.testing.assert_allclose(solution.coefficients[:, 0], exact, atol=1e-12)
    assert abs(solution.predicted_error[0] - profile_error) < 1e-9


def test_inner_products_without_closed_form_agree_with_it():
    sources = stored((0.05, 0.10), 8)
    power = PowerFunction.of_width(0.13, END)
    table = Tabulated(masses([power])[0], END)
    exact, binned = (solve_paper(sources, [t]).coefficients for t in (power, table))
    np.testing.assert_allclose(binned, exact, atol=5e-3)  # the table is a staircase of 960 steps


@pytest.mark.parametrize("solve", ["paper", "calibrated"])
def test_a_stored_average_is_returned_as_it_is(solve):
    sources = stored((0.05, 0.10), 12)
    q = 2.05e-4
    model = flat_model()
    if solve == "paper":
        solution = solve_paper(sources, sources[-2:], model, q)
    else:
        solution = solve_calibrated(sources, sources[-2:], model, q)
    np.testing.assert_allclose(solution.coefficients, np.eye(24)[:, -2:], atol=1e-3)
    np.testing.assert_allclose(solution.predicted_error, q, rtol=0.02)


def test_no_change_of_the_coefficients_lowers_the_expected_error():
    sources, target = stored((0.05, 0.10), 6), PowerFunction.of_width(0.03, END)
    q = 1e-3
    model = flat_model(walk=0.5, white=1e-3, drift=0.2)
    t = np.linspace(0, END, 200_001)  # an independent, dense quadrature
    middle, step = (t[1:] + t[:-1]) / 2, t[1] - t[0]
    profiles = np.stack([p.cumulative(middle) for p in (*sources, target)])
    rates = np.stack([np.diff(p.cumulative(t)) / step for p in (*sources, target)])
    first = np.maximum(1, 1 / middle) ** 1.5
    moved = 0.5 * ((profiles[:, None] - profiles[None]) ** 2 @ first) * step / END
    moved = moved + 1e-3 * ((rates[:, None] - rates[None]) ** 2).sum(-1) * step * END
    moved = moved + 0.2 * ((profiles[:, None] - profiles[None]).sum(-1) * step / END) ** 2
    k = len(sources)
    harmonic = np.arange(1, 2001)[:, None, None]
    falls = 1 / (1 + np.pi**2 / 6 * harmonic**2 * moved[:k, :k] / q**2)
    alike = q**2 * (6 / (np.pi * harmonic) ** 2 * falls).sum(axis=0) + 3e-4 * q**2 * np.eye(k)

    def objective(x):
        error = x @ profiles[:k] - profiles[k]
        density = x @ rates[:k] - rates[k]
        return (
            0.5 * (error**2 @ first) * step / END
            + 1e-3 * (density**2).sum() * step * END
            + 0.2 * (error.sum() * step / END) ** 2
            + x @ alike @ x
        )

    x = minimum_error_coefficients(sources, [target], model, q)
    lowest = objective(x[:, 0])
    predicted = predicted_error(x, sources, [target], model, q)[0]
    assert abs(predicted**2 / lowest - 1) < 1e-3  # midpoint sums of kinked densities
    rng = np.random.default_rng(0)
    for size in (1e-3, 1e-2, 1e-1):
        for _ in range(20):
            change = rng.standard_normal(k)
            change -= change.mean()
            assert objective(x[:, 0] + size * change) > lowest


@pytest.mark.parametrize("cadence", [1, 2, 30])
def test_coefficients_sum_to_one(cadence):
    sources = stored((0.05, 0.10), cadence)
    targets = [
        PowerFunction.of_width(0.02, END),
        PowerFunction.of_width(0.25, END),
        Window(300, END),
        Exponential(100, END),
    ]
    solution = solve_calibrated(sources, targets, flat_model(), 1e-4)
    assert solution.coefficients.shape == (2 * cadence, 4)
    np.testing.assert_allclose(solution.coefficients.sum(axis=0), 1, atol=1e-9)
    assert np.all(solution.sum_abs >= 1 - 1e-9)
    assert np.all(np.isfinite(solution.predicted_error) & (solution.predicted_error > 0))


def test_one_stored_average_is_all_there_is():
    source = PowerFunction.of_width(0.10, END)
    targets = [PowerFunction.of_width(s, END) for s in (0.05, 0.10, 0.20)]
    model = fit_trajectory([source], np.random.default_rng(0).standard_normal((1, 500)), 2.5e-8)
    solution = solve_calibrated([source], targets, model, 2.5e-8)
    np.testing.assert_array_equal(solution.coefficients, np.ones((1, 3)))
    assert solution.predicted_error[1] < 1e-7  # it is the source
    assert solution.predicted_error[0] > 0.05  # a walk as large as the weights, unseen
    assert solution.predicted_error[2] > solution.predicted_error[0]


def test_one_stored_average_predicts_the_error_of_the_walk_it_assumes():
    source, target = PowerFunction.of_width(0.10, END), PowerFunction.of_width(0.05, END)
    model = flat_model()
    t = (np.arange(100 * END) + 0.5) / 100
    exact = np.sqrt(np.mean((source.cumulative(t) - target.cumulative(t)) ** 2))
    found = solve_calibrated([source], [target], model, 0.0).predicted_error[0]
    assert abs(found / exact - 1) < 1e-3


def test_a_source_given_twice_changes_nothing_but_its_share():
    sources, target = stored((0.05, 0.10), 8), [PowerFunction.of_width(0.03, END)]
    once = minimum_error_coefficients(sources, target, flat_model(), 1e-4)
    twice = minimum_error_coefficients([*sources, sources[-1]], target, flat_model(), 1e-4)
    merged = twice[:-1].copy()
    merged[-1] += twice[-1]
    np.testing.assert_allclose(merged, once, atol=1e-6)
    assert np.all(np.isfinite(solve_paper([*sources, sources[-1]], target).coefficients))


def test_the_order_of_the_sources_does_not_matter():
    sources, target = stored((0.05, 0.10), 10), [PowerFunction.of_width(0.15, END)]
    order = np.random.default_rng(0).permutation(20)
    x = minimum_error_coefficients(sources, target, flat_model(), 1e-4)
    shuffled = minimum_error_coefficients([sources[i] for i in order], target, flat_model(), 1e-4)
    np.testing.assert_allclose(shuffled, x[order], atol=1e-7)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("lengths", [(0.075,), (0.05, 0.10)])
def test_predicted_error_is_the_error_on_a_random_walk(seed, lengths):
    """Within 25%: rates from 2000 elements are good to 5%, the pieces of the fit to some more.

    Averages of one length do not show whether the weights came to rest since the last snapshot but
    one. The mean square of both histories is up to half too small for one that walks on.
    """
    weights = random_walk(seed)
    sources = stored(lengths, 20)
    targets = [PowerFunction.of_width(s, END) for s in (0.02, 0.03, 0.07, 0.15, 0.25)]
    averages = (masses(sources) @ weights).astype(np.float16).astype(np.float64)
    exact = masses(targets) @ weights
    model = fit_trajectory(sources, averages[:, :2000], 2.05e-4)
    solution = solve_calibrated(sources, targets, model, 2.05e-4)
    error = np.linalg.norm(solution.coefficients.T @ averages - exact, axis=1)
    error /= np.linalg.norm(exact, axis=1)
    ratio = solution.predicted_error / error
    low = 1 / 1.25 if len(lengths) > 1 else 0.5**0.5 / 1.05
    assert np.all((ratio > low) & (ratio < 1.25))


def test_rounding_of_files_is_amplified_far_less_than_by_the_paper_for_short_targets():
    weights = random_walk(5)
    sources = stored((0.05, 0.10), 60)
    targets = [PowerFunction.of_width(s, END) for s in (0.01, 0.02)]
    averages = (masses(sources) @ weights).astype(np.float16).astype(np.float64)
    exact = masses(targets) @ weights
    model = fit_trajectory(sources, averages[:, :2000], 2.05e-4)
    paper, best = solve_paper(sources, targets), solve_calibrated(sources, targets, model, 2.05e-4)
    errors = [np.linalg.norm(s.coefficients.T @ averages - exact, axis=1) for s in (paper, best)]
    assert np.all(best.sum_abs < 0.5 * paper.sum_abs)
    assert np.all(errors[1] < 0.4 * errors[0])


def test_without_a_clear_gain_the_answer_is_the_papers():
    """On white noise the paper's objective is the right one."""
    sources = stored((0.05, 0.10), 30)
    targets = [PowerFunction.of_width(s, END) for s in (0.03, 0.07, 0.15)]
    model = flat_model(walk=0.0, white=1e-3)
    paper, best = (
        solve_paper(sources, targets, model, 1e-8),
        solve_calibrated(sources, targets, model, 1e-8),
    )
    np.testing.assert_array_equal(best.coefficients, paper.coefficients)
    np.testing.assert_array_equal(best.predicted_error, paper.predicted_error)


def test_512_averages_and_64_targets_are_solved():
    end = 2**20
    sources = [
        PowerFunction.of_width(s, end * (i + 1) // 256) for i in range(256) for s in (0.05, 0.10)
    ]
    targets = [PowerFunction.of_width(s, end) for s in np.linspace(0.01, 0.27, 64)]
    sample = np.random.default_rng(0).standard_normal((512, 50)).cumsum(axis=0)
    model = fit_trajectory(sources, sample, 2.05e-4)
    solution = solve_calibrated(sources, targets, model, 2.05e-4)
    assert isinstance(solution, Solution) and solution.model is model
    np.testing.assert_allclose(solution.coefficients.sum(axis=0), 1, atol=1e-8)


def test_no_source_no_target_and_a_later_source_are_refused():
    source = PowerFunction.of_width(0.10, END)
    with pytest.raises(ValueError, match="at least 1 stored average"):
        solve_paper([], [source])
    with pytest.raises(ValueError, match="at least 1 stored average"):
        solve_calibrated([source], [], flat_model(), 0.0)
    late = PowerFunction(float(sigma_rel_to_gamma(0.10)), END + 1)
    with pytest.raises(ValueError, match=f"not be later than the target, got nimg = {END + 1}"):
        solve_calibrated([source, late], [source], flat_model(), 0.0)
    with pytest.raises(ValueError, match="power functions"):
        solve_paper([Window(10, END)], [source], flat_model())
