import subprocess
import sys

import numpy as np
import pytest
from scipy.integrate import quad

from edm2lite.ema.formulas import decay
from edm2lite.ema.likelihood import misfit_of
from edm2lite.ema.profile import PowerFunction
from edm2lite.ema.quadrature import lookahead_mean, quadrature_nodes
from edm2lite.ema.rounding import ROUNDING, stored_rounding, tracker_rounding
from edm2lite.ema.solve import solve_calibrated
from edm2lite.ema.trajectory_fit import fit_trajectory

END = 960


def stored(lengths, cadence):
    step = END // cadence
    return [PowerFunction.of_width(s, t) for t in range(step, END + 1, step) for s in lengths]


def averages(sources, weights):
    edges = np.arange(END + 1)
    return np.stack([np.diff(p.cumulative(edges)) for p in sources]) @ weights


def test_rounding_constants_are_what_rounding_does():
    """Over numbers of all magnitudes, to the 2% that the table is rounded to."""
    values = np.exp(np.random.default_rng(0).uniform(-3, 3, 200_000))
    for dtype in (np.float32, np.float16):
        error = values.astype(dtype).astype(np.float64) / values - 1
        assert abs(np.sqrt(np.mean(error**2)) / ROUNDING[np.dtype(dtype).name] - 1) < 0.03
    assert abs(ROUNDING["bfloat16"] / ROUNDING["float16"] / 8 - 1) < 0.02


def test_a_random_walk_is_recognized():
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(4000) + 0.5 * np.cumsum(
        rng.standard_normal((END, 4000)), axis=0
    ) / np.sqrt(END)
    sources = stored((0.05, 0.10), 24)
    values = averages(sources, weights)
    model = fit_trajectory(sources, values, 0.0)
    square = np.mean(values[-1] ** 2)
    late = model.edges > END / 4
    # 0.25 over the run, relative to the mean square; single pieces scatter, their mean does not
    assert abs(np.mean(model.walk[1:][late]) * square / 0.25 - 1) < 0.1
    variance_of_white_average = np.mean(model.white[1:][late])
    assert variance_of_white_average < 0.02 * np.mean(model.walk[1:][late])
    assert model.misfit == 1


def test_white_noise_is_recognized():
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(4000) + 0.3 * rng.standard_normal((END, 4000))
    sources = stored((0.05, 0.10), 24)
    values = averages(sources, weights)
    model = fit_trajectory(sources, values, 0.0)
    late = model.edges > END / 4
    found = np.mean(model.white[1:][late]) * np.mean(values[-1] ** 2)
    assert abs(found / (0.09 / END) - 1) < 0.1


def test_the_speed_of_a_walk_is_followed_through_the_run():
    rng = np.random.default_rng(0)
    speed = np.where(np.arange(END) < END / 2, 1.0, 0.1)[:, None]
    weights = 3 * rng.standard_normal(4000) + np.cumsum(
        speed * rng.standard_normal((END, 4000)), axis=0
    ) / np.sqrt(END)
    sources = stored((0.05, 0.10), 24)
    model = fit_trajectory(sources, averages(sources, weights), 0.0)
    early = model.walk[1:][(model.edges > END / 4) & (model.edges < 0.45 * END)]
    late = model.walk[1:][model.edges > 0.55 * END]
    assert 50 < early.mean() / late.mean() < 200  # the variance falls by 100


def test_a_straight_line_leaves_nothing_but_drift():
    rng = np.random.default_rng(0)
    slope = rng.standard_normal(2000)
    weights = rng.standard_normal(2000) + slope * (np.arange(END) / END)[:, None]
    sources = stored((0.05, 0.10), 12)
    values = averages(sources, weights)
    model = fit_trajectory(sources, values, 2.5e-8)
    assert abs(model.drift * np.mean(values[-1] ** 2) / np.mean(slope**2) - 1) < 0.1
    assert model.walk.mean() < 1e-4 * model.drift


def filtered(noise, keep):
    for k in range(1, len(noise)):
        noise[k] += keep * noise[k - 1]
    return noise


def test_a_momentum_is_recognized_and_a_walk_without_has_none():
    """Increments with a memory of 6 steps of 960; snapshots every 16."""
    rng = np.random.default_rng(0)
    steps = filtered(rng.standard_normal((END, 3000)), np.exp(-1 / 6))
    weights = 10 * rng.standard_normal(3000) + np.cumsum(steps, axis=0) / np.sqrt(END)
    sources = stored((0.05, 0.10), 60)
    model = fit_trajectory(sources, averages(sources, weights), 0.0)
    assert 4 <= model.momentum <= 9 and not model.white.any()  # the grid has 4, 6 and 9
    rough = 10 * rng.standard_normal(3000) + np.cumsum(
        rng.standard_normal((END, 3000)), axis=0
    ) / np.sqrt(END)
    assert fit_trajectory(sources, averages(sources, rough), 0.0).momentum == 0


def test_noise_with_a_memory_is_an_excursion():
    """Forgotten over 3 % of the run; what a walk or white noise would be, they do not share."""
    rng = np.random.default_rng(0)
    keep = np.exp(-1 / (0.03 * END))
    around = filtered(0.1 * rng.standard_normal((END, 3000)), keep)
    sources = stored((0.05, 0.10), 60)
    model = fit_trajectory(sources, averages(sources, 10 * rng.standard_normal(3000) + around), 0.0)
    late = slice(len(model.edges) // 2, None)
    # a kernel 0.1 keep**l of the sum 0.1 / (1 - keep), per step
    expected = (0.1 / (1 - keep)) ** 2 / END / 100
    assert abs(np.mean(model.excursion[late]) / expected - 1) < 0.15
    assert np.mean(model.walk[late]) < 0.02 * np.mean(model.excursion[late]) * 0.03**-2


def test_held_out_averages_are_predicted_from_the_others_as_one_by_one():
    """The closed form against each average left out in turn and predicted with least error."""
    rng = np.random.default_rng(0)
    k = 7
    basis = rng.standard_normal((k - 1, k))
    basis -= basis.mean(axis=1, keepdims=True)  # differences
    root, other = rng.standard_normal((2, k, k))
    covariance, measured = root @ root.T, other @ other.T
    ratios = []
    for i in range(k):
        # x_i = 1, the others sum to -1: free coefficients of differences that leave i out
        free = np.linalg.svd(np.stack([np.ones(k), np.eye(k)[i]]))[2][2:].T
        base = np.eye(k)[i] - (1 - np.eye(k)[i]) / (k - 1)
        z = np.linalg.solve(free.T @ covariance @ free, -free.T @ covariance @ base)
        x = base + free @ z
        ratios.append((x @ measured @ x) / (x @ covariance @ x))
    of_differences = [basis @ c @ basis.T for c in (covariance, measured)]
    missed = np.sqrt(np.mean(ratios))
    inverse = np.linalg.inv(of_differences[0])
    mean_square = np.sum((inverse @ of_differences[1]) * (inverse @ of_differences[1]).T) / (k - 1)
    expected = max(1, np.sqrt(mean_square) / 1.25) * max(1, missed / 1.1, 0.9 / missed)
    assert abs(misfit_of(basis, *of_differences) / expected - 1) < 1e-9
    assert misfit_of(basis, of_differences[0], of_differences[0]) == 1
    # all errors half as large as expected: as little to be trusted as twice as large
    assert abs(misfit_of(basis, of_differences[0], 0.25 * of_differences[0]) - 1.8) < 1e-9


def test_predictions_are_right_on_weights_that_an_optimizer_smooths():
    """Every length from 0.01 to 0.25 within [0.67, 1.5] of the error made, also below 1e-5."""
    rng = np.random.default_rng(0)
    steps = filtered(rng.standard_normal((END, 3000)), 0.85)
    weights = rng.standard_normal(3000) + 0.05 * np.cumsum(steps, axis=0) / np.sqrt(END)
    lengths_wanted = (
        0.01,
        0.02,
        0.03,
        0.04,
        0.07,
        0.13,
        0.16,
        0.20,
        0.25,
    )  # none near a stored one
    targets = [PowerFunction.of_width(s, END) for s in lengths_wanted]
    truth = averages(targets, weights)
    for lengths, cadence in (((0.05, 0.10), 30), ((0.05, 0.10), 120), ((0.075,), 120)):
        sources = stored(lengths, cadence)
        values = averages(sources, weights)
        solution = solve_calibrated(sources, targets, fit_trajectory(sources, values, 1e-9), 1e-9)
        error = solution.coefficients.T @ values - truth
        actual = np.linalg.norm(error, axis=1) / np.linalg.norm(truth, axis=1)
        ratio = solution.predicted_error / actual
        assert np.all((ratio > 0.67) & (ratio < 1.5)), ratio


def test_an_oscillation_is_seen_to_be_none_of_the_models():
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 2 * np.pi, 2000)
    weights = rng.standard_normal(2000) + np.cos(np.arange(END)[:, None] / 8 + phase)
    sources = stored((0.05, 0.10), 24)
    assert fit_trajectory(sources, averages(sources, weights), 2.5e-8).misfit > 1.5


def test_expected_difference_of_two_averages_is_the_measured_one():
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(4000) + np.cumsum(
        rng.standard_normal((END, 4000)), axis=0
    ) / np.sqrt(END)
    sources = stored((0.05, 0.10), 24)
    values = averages(sources, weights)
    model = fit_trajectory(sources, values, 0.0)
    vectors = model.response(sources, quadrature_nodes([s.nimg for s in sources], END))
    for i, j in ((-1, -2), (-1, -3), (-1, -9), (-10, -11)):
        expected = np.sum((vectors[i] - vectors[j]) ** 2)
        measured = np.mean((values[i] - values[j]) ** 2) / np.mean(values[-1] ** 2)
        assert abs(expected / measured - 1) < 0.15


def tracked_in_float32(weights, gamma, ends):
    """[K, n] float32 average minus the exact one at the updates ``ends``, relative to the RMS."""
    low, kept = 0.0, []
    for step, now in enumerate(weights, start=1):
        now, keep = now.astype(np.float32), 1 - decay(gamma, step, 1)
        if step == 1:
            low, high = np.zeros_like(now), np.zeros(len(now))
        low = low + np.float32(keep) * (now - low)
        high = high + keep * (now.astype(np.float64) - high)
        if step in ends:
            kept.append((low - high) / np.sqrt(np.mean(np.square(high))))
    return np.array(kept)


@pytest.mark.parametrize("change", [1e-11, 1e-8])
def test_float32_updates_leave_the_rounding_that_the_factor_says(change):
    """20 times and twice what independent errors would leave. The closed form takes correlations
    as constant over what an average remembers: it is within 25 % here, in either direction."""
    rng = np.random.default_rng(0)
    n, updates, gamma = 1000, 20_000, PowerFunction.of_width(0.10, 1).gamma
    size = np.sqrt(rng.exponential(change, n))
    value = rng.uniform(0.5, 2, n)

    def weights():
        now = value
        for _ in range(updates):
            now = now + size * rng.standard_normal(n)
            yield now

    error = tracked_in_float32(weights(), gamma, (10_000, 20_000))
    sources = [PowerFunction(gamma, 10_000), PowerFunction(gamma, 20_000)]
    lags = np.unique(np.geomspace(1, updates, 30).round())
    moved = change * lags / np.mean(value**2)
    factor = tracker_rounding(sources, updates, updates, lags, moved)
    measured, expected = np.mean(error**2, axis=1), np.sum(factor**2, axis=1)
    np.testing.assert_allclose(np.sqrt(expected / measured), 1, atol=0.35)


def test_weights_that_move_straight_on_are_rounded_alike():
    rng = np.random.default_rng(0)
    gamma, updates = PowerFunction.of_width(0.10, 1).gamma, 2000
    value, slope = rng.uniform(0.5, 2, 2000), rng.standard_normal(2000) / updates
    error = tracked_in_float32(
        (value + k * slope for k in range(updates)), gamma, (1000, 1500, 2000)
    )
    sources = [PowerFunction(gamma, t) for t in (1000, 1500, 2000)]
    factor = tracker_rounding(sources, updates, updates, np.array([1.0]), np.array([0.0]))
    expected, measured = factor @ factor.T, error @ error.T / 2000
    # systematic rounding scatters with the few spacings that the numbers pass: a factor of 2
    assert np.all(np.abs(np.log(expected / measured)) < np.log(4))
    assert np.all(np.diag(measured) > 20 * 2.5e-8**2 * updates / (2 * gamma + 3))


def test_independent_rounding_of_the_tracker_sums_to_its_closed_form():
    """Errors q of which an average keeps (t' / t)**(gamma + 1): q**2 N / (2 gamma + 3)."""
    sources = [PowerFunction(3.0, t) for t in (100, 150, 400)]
    factor = tracker_rounding(sources, 800, 400, np.array([1.0]), np.array([1.0]))
    found = factor @ factor.T / ROUNDING["float32"] ** 2
    # weights that change by as much as they are leave a correlation of 1e-12
    np.testing.assert_allclose(np.diag(found), 2 * np.array([100, 150, 400]) / 9, rtol=1e-6)
    np.testing.assert_allclose(found[2, 0], (100 / 400) ** 4 * found[0, 0], rtol=1e-6)


def test_rounding_errors_of_moving_numbers_correlate_as_the_factor_says():
    """Rounded to integers, q**2 = 1/12; 400,000 products scatter by 0.003."""
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 1000, 400_000)
    for mean_square in (0.02, 0.1, 0.3):
        size = np.sqrt(rng.exponential(mean_square, start.size))
        other = start + size * rng.standard_normal(start.size)
        first, second = np.round(start) - start, np.round(other) - other
        vectors = np.array([[0.0], [np.sqrt(mean_square)]])
        factor = stored_rounding(12**-0.5, vectors)
        assert abs(np.mean(first * second) * 12 - (factor @ factor.T)[0, 1] * 12) < 0.01


def test_numbers_that_do_not_move_round_alike():
    far = stored_rounding(1e-3, np.array([[0.0], [1.0]]))
    near = stored_rounding(1e-3, np.array([[0.0], [0.0]]))
    np.testing.assert_allclose(far @ far.T, 1e-6 * np.eye(2), atol=1e-11)
    np.testing.assert_allclose(near @ near.T, 1e-6 * np.ones((2, 2)), atol=1e-11)
    assert stored_rounding(0.0, np.zeros((3, 1))).any() == np.False_


@pytest.mark.parametrize("memory", [0.5, 9.0, 2000.0])
def test_remembered_is_the_mean_over_what_follows(memory):
    """SciPy's adaptive quadrature of the same integral, piece by piece between the kinks."""
    u, w = quadrature_nodes([480, END], END)
    for nimg in (480, END):
        after = PowerFunction.of_width(0.075, nimg)
        found = lookahead_mean(1 - after.cumulative(u)[None], w, memory)[0]
        for start, value in zip(u[::97], found[::97], strict=True):

            def integrand(t, start=start, after=after):
                return (1 - after.cumulative(t)) * np.exp((start - t) / memory) / memory

            far = min(max(start, nimg), start + 40 * memory)
            exact = quad(integrand, start, far, epsabs=1e-12, limit=200)[0]
            assert abs(value - exact) < 1e-5  # parabolas through a power of 11 in short cells


def test_quadrature_integrates_a_short_average():
    target = PowerFunction.of_width(0.01, END)
    u, w = quadrature_nodes([120, 960], END)
    power = target.gamma + 1
    assert abs(w.sum() / END - 1) < 1e-12
    exact = END / (2 * power + 1)  # of (t / T)**(2 power)
    assert abs((target.cumulative(u) ** 2 @ w) / exact - 1) < 1e-4


def test_identical_and_duplicate_averages_do_not_stop_the_fit():
    sources = stored((0.05, 0.10), 4)
    still = np.tile(np.random.default_rng(0).standard_normal(300), (8, 1))
    frozen = fit_trajectory(sources, still, 2.05e-4)
    assert np.isfinite(frozen.walk).all() and frozen.walk.max() < 1e-6
    twice = fit_trajectory([*sources, sources[-1]], np.vstack([still, still[-1]]), 2.05e-4)
    assert np.isfinite(twice.walk).all()


@pytest.mark.parametrize("updates", [1, 2, 3, 10**7])
def test_any_number_of_updates_is_fitted_and_solved(updates):
    sources = [PowerFunction.of_width(s, t) for t in (50, 100, 100_000_000) for s in (0.05, 0.1)]
    sample = np.random.default_rng(0).standard_normal((6, 300)).cumsum(axis=0)
    model = fit_trajectory(sources, sample, 2.5e-8, updates=updates)
    target = PowerFunction.of_width(0.07, 100_000_000)
    solution = solve_calibrated(sources, [target], model, 2.5e-8)
    assert np.isfinite(solution.coefficients).all() and solution.predicted_error[0] > 0


@pytest.mark.parametrize(
    "sample, rounding, message",
    [
        (np.ones((3, 5)), 0.0, "one row per stored average"),
        (np.ones(2), 0.0, "one row per stored average"),
        (np.array([[1.0, np.nan], [1, 1]]), 0.0, r"rows \[0\] are not"),
        (np.zeros((2, 5)), 0.0, "not be all zero"),
        (np.ones((2, 5)), -1.0, r"in \[0, 1\)"),
    ],
)
def test_bad_samples_are_refused(sample, rounding, message):
    with pytest.raises(ValueError, match=message):
        fit_trajectory(stored((0.05, 0.10), 1), sample, rounding)


def test_no_source_and_negative_updates_are_refused():
    with pytest.raises(ValueError, match="at least 1 stored average"):
        fit_trajectory([], np.ones((0, 5)), 0.0)
    with pytest.raises(ValueError, match="updates must be 0 or"):
        fit_trajectory(stored((0.1,), 2), np.ones((2, 5)), 0.0, updates=-1)


def test_the_solver_does_not_load_torch():
    code = "import sys, edm2lite.ema.solve; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
