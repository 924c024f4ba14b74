import subprocess
import sys

import numpy as np
import pytest

from edm2lite.ema.fitting import fit_trajectory
from edm2lite.ema.profile import PowerFunction, decay
from edm2lite.ema.quadrature import quadrature_nodes
from edm2lite.ema.rounding import ROUNDING, stored_rounding, tracker_rounding

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


def test_a_random_walk_is_recognised():
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


def test_white_noise_is_recognised():
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


def test_float32_updates_leave_the_rounding_that_the_factor_says():
    rng = np.random.default_rng(0)
    n, updates, gamma = 3000, 600, PowerFunction.of_width(0.10, 1).gamma
    value = rng.uniform(0.5, 2, n)
    low, high = value.astype(np.float32), value.astype(np.float32).astype(np.float64)
    kept = []
    for step in range(1, updates + 1):
        now = (value + 0.3 * rng.standard_normal(n)).astype(np.float32)
        keep = 1 - decay(gamma, step, 1)
        low = low + np.float32(keep) * (now - low)
        high = high + keep * (now - high)
        if step in (300, 600):
            kept.append((low - high) / np.sqrt(np.mean(value**2)))
    sources = [PowerFunction(gamma, 300), PowerFunction(gamma, 600)]
    random, systematic = tracker_rounding(sources, updates, updates)
    expected, measured = random @ random.T, np.array(kept) @ np.array(kept).T / n
    # The constant is a mean over magnitudes, and the factor 1 - beta is rounded as well.
    assert np.all(np.abs(np.log(np.diag(measured) / np.diag(expected))) < np.log(2))
    assert np.all(systematic[:, 0] ** 2 > np.diag(measured))  # the most there can be


def test_random_rounding_of_the_tracker_sums_to_its_closed_form():
    """Independent errors q, of which an average keeps (t' / t)**(gamma + 1): q**2 N / (2 g + 3)."""
    sources = [PowerFunction(3.0, t) for t in (100, 150, 400)]
    random, _ = tracker_rounding(sources, updates=800, nimg=400)
    found = random @ random.T / ROUNDING["float32"] ** 2
    np.testing.assert_allclose(np.diag(found), 2 * np.array([100, 150, 400]) / 9, rtol=1e-12)
    np.testing.assert_allclose(found[2, 0], (100 / 400) ** 4 * found[0, 0], rtol=1e-12)


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


@pytest.mark.parametrize(
    ("sample", "rounding", "message"),
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
