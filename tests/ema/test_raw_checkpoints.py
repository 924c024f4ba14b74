"""Averages from raw checkpoints. Oracles: NumPy sums over all updates, closed forms for a walk."""

import numpy as np
import pytest

from edm2lite.ema.merging import merging_coefficients
from edm2lite.ema.planning import random_walk
from edm2lite.ema.profile import PowerFunction, Step, Tabulated, Window
from edm2lite.ema.solve import minimum_error_coefficients, solve_calibrated
from edm2lite.ema.solvers import SOLVERS, solve_wsm, usable
from edm2lite.ema.trajectory_fit import fit_trajectory

UPDATES, ELEMENTS = 1024, 800
SHAPES = {
    "linear": lambda s: s,
    "cosine": lambda s: (1 - np.cos(np.pi * s)) / 2,
    "square": lambda s: 1 - (1 - s) ** 2,
    "1-sqrt": np.sqrt,
}


def decay(shape, share, updates=UPDATES):
    """The average that emulates a decay over the last ``share`` of a run."""
    s = np.clip((np.arange(updates + 1) / updates - (1 - share)) / share, 0, 1)
    return Tabulated(np.diff(SHAPES[shape](s)), updates)


def masses(profiles, updates=UPDATES):
    """Share [K, updates] of the weights after each update, as the tracker takes them."""
    return np.stack([np.diff(p.cumulative(np.arange(updates + 1))) for p in profiles])


def walk(seed, momentum=0.0, updates=UPDATES, elements=ELEMENTS):
    rng = np.random.default_rng(seed)
    steps = rng.standard_normal((updates, elements)) / np.sqrt(updates)
    for i in range(1, updates if momentum else 0):
        steps[i] = momentum * steps[i - 1] + (1 - momentum) * steps[i]
    return rng.standard_normal(elements) + 0.5 * np.cumsum(steps, axis=0)


@pytest.mark.parametrize("seed", range(4))
def test_merging_every_update_is_the_run_with_the_multipliers_applied(seed):
    """arXiv 2507.17634, for any decreasing schedule: exact, so that only float64 rounds."""
    rng = np.random.default_rng(seed)
    updates, count = 60, int(rng.integers(1, 20))
    moves = rng.standard_normal((updates, 5))
    weights = np.cumsum(moves, axis=0)
    multiplier = np.ones(updates)  # of the update that makes weights[i]
    multiplier[-count:] = np.sort(rng.uniform(size=count))[::-1]
    decayed = (multiplier[:, None] * moves).sum(axis=0)
    target = Tabulated(-np.diff(np.append(multiplier, 0)), updates)  # P = 1 - w at its beginning
    x = merging_coefficients([Step(k) for k in range(1, updates + 1)], [target])[:, 0]
    assert (x >= 0).all() and abs(x.sum() - 1) < 1e-14
    assert np.abs(x @ weights - decayed).max() < 1e-12


def test_the_profile_of_a_checkpoint_is_all_of_its_update():
    """Its weight is that of the tracker after one update, whatever came before."""
    assert masses([Step(300, stride=4)], 400)[0, 296:300].sum() == 1
    assert masses([Step(300)], 400)[0].tolist() == [0.0] * 299 + [1.0] + [0.0] * 100


@pytest.mark.parametrize("share", [0.1, 0.25, 0.6])
def test_coefficients_are_those_of_least_expected_error_of_a_random_walk(share):
    """For a walk the squared error is ``sum_t (sum_i x_i [t_i > t] - w(t))**2 / T``."""
    times = [UPDATES * k // 8 for k in range(1, 9)]
    target, moments = decay("cosine", share), np.arange(UPDATES)
    remaining = 1 - target.cumulative(moments + 0.5)
    reached = np.stack([moments < t for t in times]).astype(float)
    best, square, *_ = np.linalg.lstsq((reached[:-1] - reached[-1]).T, remaining - reached[-1])
    sources, model = [Step(t) for t in times], random_walk(UPDATES, times[0], movement=1.0)
    x = minimum_error_coefficients(sources, [target], model, 0.0)[:, 0]
    assert np.abs(x[:-1] - best).max() < 4 / UPDATES  # an update has no middle in the model
    predicted = solve_calibrated(sources, [target], model, 0.0).predicted_error[0]
    assert predicted == pytest.approx(float(np.sqrt(square[0] / UPDATES)), rel=1e-2)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("inside", [False, True])
def test_least_squares_is_never_worse_than_merging_and_better_by_a_third(momentum, inside):
    weights, gains, calibration, models = walk(3, momentum), [], [], {}
    for share in (0.05, 0.1, 0.25, 0.5):
        first = 1 - share if inside else 1 / 8
        times = np.linspace(first, 1, 8) * UPDATES
        sources = [Step(int(t)) for t in times]
        values = np.stack([weights[s.nimg - 1] for s in sources])
        if first not in models:
            models[first] = fit_trajectory(sources, values, 2.5e-8)
        model = models[first]
        targets = [decay(shape, share) for shape in SHAPES]
        truth = masses(targets) @ weights
        merged, best = (f(sources, targets, model, 2.5e-8) for f in (solve_wsm, solve_calibrated))
        errors = [np.linalg.norm(s.coefficients.T @ values - truth, axis=1) for s in (merged, best)]
        gains += list(errors[0] / errors[1])
        norm = np.linalg.norm(truth, axis=1)
        calibration += list(merged.predicted_error * norm / errors[0])
        calibration += list(best.predicted_error * norm / errors[1])
    assert min(gains) > 1 - 1e-9
    assert np.exp(np.mean(np.log(gains))) > 1.3
    assert min(calibration) > 0.67 and max(calibration) < 1.5


def test_a_checkpoint_beside_averages_shortens_their_error():
    """A length far below those that are tracked needs the weights themselves."""
    weights = walk(5)
    times = [UPDATES * k // 8 for k in range(1, 9)]
    averages = [PowerFunction.of_width(s, t) for t in times for s in (0.05, 0.10)]
    mixed = [*averages, *(Step(t) for t in times)]
    target = Window(UPDATES // 40, UPDATES)
    truth = (masses([target]) @ weights)[0]
    errors = {}
    for name, sources in (("averages", averages), ("mixed", mixed), ("raw", mixed[16:])):
        values = masses(sources) @ weights
        model = fit_trajectory(sources, values, 2.5e-8, updates=UPDATES)
        solution = solve_calibrated(sources, [target], model, 2.5e-8)
        errors[name] = np.linalg.norm(solution.coefficients[:, 0] @ values - truth)
        predicted = solution.predicted_error[0] * np.linalg.norm(truth)
        assert 0.67 < predicted / errors[name] < 1.5
    assert errors["mixed"] < 0.9 * min(errors["averages"], errors["raw"])


def test_noise_of_single_updates_is_averaged_out():
    """Weights that jump around at every update: the mean of checkpoints is what helps."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(ELEMENTS) + 0.1 * rng.standard_normal((UPDATES, ELEMENTS))
    sources = [Step(UPDATES * k // 8) for k in range(1, 9)]
    values = np.stack([weights[s.nimg - 1] for s in sources])
    model = fit_trajectory(sources, values, 2.5e-8)
    target = decay("linear", 0.1)
    x = minimum_error_coefficients(sources, [target], model, 2.5e-8)[:, 0]
    truth = (masses([target]) @ weights)[0]
    rebuilt, mean = (np.linalg.norm(c @ values - truth) for c in (x, np.full(8, 1 / 8)))
    assert rebuilt < 1.25 * mean < 0.5 * np.linalg.norm(values[-1] - truth)


def test_the_rounding_of_the_files_is_in_the_predicted_error():
    """The weights at the last checkpoint, rebuilt from it: what differs is its rounding."""
    sources = [Step(UPDATES * k // 8) for k in range(1, 9)]
    for rounding in (2.5e-8, 1.65e-3):
        solution = solve_calibrated(sources, sources[-1:], random_walk(UPDATES, 128), rounding)
        assert solution.predicted_error[0] == pytest.approx(rounding, rel=0.01)
        assert np.abs(solution.coefficients[:, 0] - np.eye(8)[-1]).max() < 1e-2


def test_solvers_take_the_snapshots_that_they_can_combine():
    mixed = [PowerFunction(7.0, 100), Step(100), PowerFunction(7.0, 200), Step(200)]
    assert usable("paper", mixed) == [0, 2] and usable("wsm", mixed) == [1, 3]
    assert usable("calibrated", mixed) == [0, 1, 2, 3] and set(SOLVERS) == {
        "calibrated", "paper", "wsm",
    }  # fmt: skip
    with pytest.raises(ValueError, match="wsm needs raw checkpoints, the snapshots are averages"):
        usable("wsm", mixed[::2])
    with pytest.raises(ValueError, match="needs raw checkpoints"):
        merging_coefficients(mixed[::2], [Window(50, 200)])
