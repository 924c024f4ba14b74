"""When the model's coefficients are used, and when the paper's. Oracle: averages in float64."""

import numpy as np
import pytest

from edm2lite.ema.profile import PowerFunction
from edm2lite.ema.solve import solve_calibrated, solve_paper
from edm2lite.ema.trajectory_fit import fit_trajectory

END, ELEMENTS = 960, 1500
LENGTHS = (0.01, 0.015, 0.02, 0.03, 0.07, 0.13, 0.20, 0.25)  # none of them stored


def masses(profiles):
    return np.stack([np.diff(p.cumulative(np.arange(END + 1))) for p in profiles])


def fitted(weights, lengths, cadence):
    """(sources, their float32 values, model)"""
    ends = [END * k // cadence for k in range(1, cadence + 1)]
    sources = [PowerFunction.of_width(s, end) for end in ends for s in lengths]
    values = (masses(sources) @ weights).astype(np.float32).astype(np.float64)
    return sources, values, fit_trajectory(sources, values, 2.5e-8)


def errors(weights, lengths, cadence):
    """[2, R] errors of the paper's coefficients and of those that are chosen."""
    sources, values, model = fitted(weights, lengths, cadence)
    targets = [PowerFunction.of_width(s, END) for s in LENGTHS]
    solutions = solve_paper(sources, targets), solve_calibrated(sources, targets, model, 2.5e-8)
    truth = masses(targets) @ weights
    return np.array([np.linalg.norm(s.coefficients.T @ values - truth, axis=1) for s in solutions])


def random_walk(seed):
    rng = np.random.default_rng(seed)
    steps = rng.standard_normal((END, ELEMENTS)) / np.sqrt(END)
    return rng.standard_normal(ELEMENTS) + 0.5 * np.cumsum(steps, axis=0)


def decayed(seed):
    """Weights with a constant gradient and noise, smoothed by momentum, under a cosine decay."""
    rng = np.random.default_rng(seed)
    rate = 0.5 + 0.5 * np.cos(np.pi * np.arange(END) / END)
    noise = rng.standard_normal((END, ELEMENTS))
    for k in range(1, END):
        noise[k] += 0.9 * noise[k - 1]
    steps = rng.standard_normal(ELEMENTS) / END + 0.03 * noise / np.sqrt(END)
    return 2 * rng.standard_normal(ELEMENTS) + np.cumsum(rate[:, None] * steps, axis=0)


@pytest.mark.parametrize("cadence", [6, 8, 12])
def test_few_snapshots_of_a_decayed_run_are_not_three_times_worse_than_the_papers(cadence):
    paper, chosen = errors(decayed(0), (0.075,), cadence)
    assert np.all(chosen < 1.1 * paper)
    assert np.all(chosen[-3:] < 0.2 * paper[-3:])  # and long averages are still far better


@pytest.mark.parametrize("seed", [0, 1])
def test_walks_are_not_held_at_the_papers_coefficients(seed):
    """Eight snapshots of two averages, whose best combination has two thirds of the error."""
    paper, chosen = errors(random_walk(seed), (0.05, 0.10), 8)
    assert np.all(chosen < 0.8 * paper)


def test_an_oscillation_that_few_snapshots_alias_is_not_twice_as_wrong_as_with_the_papers():
    rng = np.random.default_rng(0)
    phase = 2 * np.pi * (np.arange(END)[:, None] / 41.5 + rng.uniform(size=ELEMENTS))
    paper, chosen = errors(rng.standard_normal(ELEMENTS) + 0.5 * np.cos(phase), (0.075,), 20)
    assert np.all(chosen < 1.1 * paper)


def test_a_run_at_rest_since_its_last_snapshot_but_one_is_told_from_one_that_walks_on():
    """Two averages show the difference. One does not, and both histories stay possible."""
    moving = random_walk(0)
    resting = np.concatenate([moving[: END * 7 // 8], np.tile(moving[END * 7 // 8], (END // 8, 1))])
    assert fitted(moving, (0.05, 0.10), 8)[2].doubt < 0.1
    assert fitted(resting, (0.05, 0.10), 8)[2].doubt > 0.9
    assert 0.3 < fitted(moving, (0.075,), 8)[2].doubt < 0.7


def test_the_difference_of_the_two_solutions_is_measured_not_predicted():
    sources, values, model = fitted(random_walk(0), (0.05, 0.10), 8)
    change = np.random.default_rng(0).standard_normal((16, 3))
    change -= change.mean(axis=0)
    order = np.random.default_rng(1).permutation(16)
    found = model.measured([sources[i] for i in order], change[order])
    rms = np.sqrt(np.mean((change.T @ values) ** 2, axis=1) / np.mean(values[-2] ** 2))
    np.testing.assert_allclose(found, rms, rtol=1e-12)
    assert model.measured([PowerFunction(3.0, END)], np.zeros((1, 1))) is None
