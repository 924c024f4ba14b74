"""Intervals by simulation, gradients by differences, the search on curves that are known."""

import numpy as np
import pytest

from edm2lite.metrics.feature_stats import FeatureStats
from edm2lite.metrics.frechet import (
    Gradient,
    Removal,
    frechet_distance,
    frechet_influences,
    square_root,
)
from edm2lite.metrics.influence import covariance, moments_of
from edm2lite.metrics.interval import alike, judge, minimum, normal_limits, resample
from edm2lite.metrics.measurement import ImageRows
from edm2lite.metrics.moments import RunningMoments
from edm2lite.sweep.search import MOST, search


def moments(rows):
    found = RunningMoments()
    found.add(rows)
    return found


def distance(rows, mean, cov):
    a = FeatureStats(0, rows.mean(0), np.cov(rows.T), "x", "", "", "")
    return frechet_distance(a, FeatureStats(0, mean, cov, "x", "", "", ""))


def influences_of(rows, mean, cov, classes=0):
    parts = ImageRows(lambda: iter(np.array_split(rows, 7)), len(rows), classes)
    return frechet_influences(parts, mean, square_root(cov))


def half_width(covariance):
    low, high = normal_limits(0.0, np.sqrt(covariance[0, 0]))
    return (high - low) / 2


def problem(rng, dim):
    factor = rng.standard_normal((dim, dim)) / np.sqrt(dim)
    cov = factor @ factor.T + 0.1 * np.eye(dim)
    return np.zeros(dim), cov, np.linalg.cholesky(cov)


def test_moments_of_quarters_add_up_and_leave_out():
    rows = np.random.default_rng(0).standard_normal((103, 5))
    total, quarters = moments_of(lambda: iter(np.array_split(rows, 9)), 103)
    np.testing.assert_allclose(total.cov, np.cov(rows.T), rtol=1e-12)
    left = total.without(quarters[0])
    np.testing.assert_allclose(left.cov, np.cov(rows[quarters[0].count :].T), rtol=1e-10)


def test_influence_is_the_derivative_of_the_distance():
    rng = np.random.default_rng(0)
    mean, cov, factor = problem(rng, 6)
    rows = rng.standard_normal((400, 6)) @ factor.T * 1.3 + 0.4
    gradient = Gradient(moments(rows), mean, square_root(cov))
    values = gradient(rows - rows.mean(0))
    values -= values.mean()
    eps = 1e-4  # the weight of image i, on top of 1/n for all
    for i in (0, 17, 399):
        weights = np.full(400, 1 / 400)
        changed = []
        for sign in (-1, 1):
            w = weights * (1 - sign * eps)
            w[i] += sign * eps
            m = w @ rows
            s = (rows - m).T @ ((rows - m) * w[:, None]) * 400 / 399
            a = FeatureStats(0, m, s, "x", "", "", "")
            changed.append(frechet_distance(a, FeatureStats(0, mean, cov, "x", "", "", "")))
        assert (changed[1] - changed[0]) / (2 * eps) == pytest.approx(values[i], rel=0.01)


@pytest.mark.parametrize("num", [5, 12, 40])
def test_removal_is_the_change_by_leaving_an_image_out(num):
    """With fewer images than features, as many, and more."""
    rng = np.random.default_rng(num)
    mean, cov, factor = problem(rng, 12)
    rows = rng.standard_normal((num, 12)) @ factor.T * 0.8 + 0.2
    values = Removal(moments(rows), mean, square_root(cov))(rows - rows.mean(0))
    left = [exact_distance(np.delete(rows, i, 0), mean, cov) for i in range(num)]
    got = (values - values[0]) / (1 - num)
    np.testing.assert_allclose(got, np.array(left) - left[0], rtol=0, atol=1e-7 * max(left))


def test_two_images_have_no_interval():
    with pytest.raises(ValueError, match="at least 3 images, got 2"):
        Removal(moments(np.eye(2)), np.zeros(2), np.eye(2))


def exact_distance(rows, mean, cov):
    """By singular values, which are exact where the covariance of the rows is singular."""
    offsets = (rows - rows.mean(0)) / np.sqrt(len(rows) - 1)
    roots = np.linalg.svd(offsets @ square_root(cov), compute_uv=False).sum()
    return ((rows.mean(0) - mean) ** 2).sum() + (offsets**2).sum() + np.trace(cov) - 2 * roots


@pytest.mark.slow
@pytest.mark.parametrize(
    "dim, num, shift, scale",
    [(8, 300, 0.3, 1.3), (16, 100, 0.2, 1.2), (32, 500, 0.0, 1.0), (32, 100, 0.0, 0.7)],
)
def test_intervals_cover_the_expected_distance_as_often_as_they_say(dim, num, shift, scale):
    rng = np.random.default_rng(dim)
    mean, cov, factor = problem(rng, dim)
    repeats = 400
    values, half = [], []
    for _ in range(repeats):
        rows = rng.standard_normal((num, dim)) @ factor.T * scale + shift
        values.append(distance(rows, mean, cov))
        half.append(half_width(covariance([influences_of(rows, mean, cov)])))
    expected = np.mean(values)
    covered = np.mean(np.abs(np.array(values) - expected) < half)
    # the frequency itself has standard deviation 0.011 at 400 repeats
    assert 0.92 <= covered <= 0.98, covered


@pytest.mark.slow
def test_intervals_of_classes_in_turn_are_of_what_differs_within_a_class():
    rng = np.random.default_rng(0)
    mean, cov, factor = problem(rng, 8)
    centers = 2 * rng.standard_normal((10, 8))
    values, half = [], {0: [], 10: []}
    for _ in range(400):
        rows = centers[np.arange(300) % 10] + rng.standard_normal((300, 8)) @ factor.T
        values.append(distance(rows, mean, cov))
        for classes in half:
            half[classes].append(half_width(covariance([influences_of(rows, mean, cov, classes)])))
    errors = np.abs(np.array(values) - np.mean(values))
    assert 0.92 <= np.mean(errors < half[10]) <= 0.98
    assert np.mean(half[0]) > 1.5 * np.mean(half[10])  # as if the share of each were left to chance


def test_differences_on_the_same_seeds_are_known_better_than_the_values():
    rng = np.random.default_rng(0)
    mean, cov, factor = problem(rng, 8)
    noise = rng.standard_normal((2000, 8)) @ factor.T
    a, b = noise * 1.3 + 0.3, noise * 1.32 + 0.31
    joint = covariance([influences_of(rows, mean, cov) for rows in (a, b)])
    difference = joint[0, 0] + joint[1, 1] - 2 * joint[0, 1]
    assert difference < 0.02 * joint[0, 0]
    values = np.array([distance(rows, mean, cov) for rows in (a, b)])
    assert alike(values, joint) == (0,)
    apart = np.diag(np.diag(joint))
    assert alike(values, apart) == (0, 1)  # other seeds for each: not enough images


def curve(lengths):
    return 2 + np.log(np.asarray(lengths) / 0.08) ** 2


def test_minimum_of_a_parabola_is_its_vertex():
    lengths = np.array([0.03, 0.05, 0.12, 0.2])
    assert minimum(lengths, curve(lengths)) == pytest.approx(0.08, rel=1e-12)
    falling = np.array([3.0, 2.0, 1.5, 1.0])
    assert minimum(lengths, falling) == 0.2
    both = minimum(lengths, np.stack([curve(lengths), falling]))
    np.testing.assert_allclose(both, [0.08, 0.2])


def test_verdict_covers_the_place_of_the_minimum_and_says_when_it_is_open():
    lengths = np.geomspace(0.02, 0.25, 9)
    sure, unsure = 1e-4 * np.eye(9), 4.0 * np.eye(9)
    verdict = judge(list(lengths), curve(lengths), sure)
    assert verdict.low < 0.08 < verdict.high < 0.12 and not verdict.open_low
    vague = judge(list(lengths), curve(lengths), unsure)
    assert vague.open_low and vague.open_high and len(vague.alike) > len(verdict.alike)


def test_resampling_has_the_joint_covariance():
    joint = np.array([[2.0, 1.9], [1.9, 2.0]])
    draws = resample(np.array([5.0, 6.0]), joint)
    np.testing.assert_allclose(np.cov(draws.T), joint, atol=0.15)  # 4000 draws: 2 % of 2, 3 sigma
    np.testing.assert_allclose(draws.mean(0), [5, 6], atol=0.1)


@pytest.mark.parametrize("best", [0.02, 0.023, 0.05, 0.09, 0.14, 0.22, 0.25])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_search_finds_the_minimum_with_a_third_of_a_grid(best, noise):
    measured = {}
    seeds = np.random.default_rng(0).standard_normal(2)

    def measure(lengths, num):
        x = np.log(np.asarray(lengths) / best)
        values = 1 + x**2 + noise * (seeds[0] + seeds[1] * x)  # the same seeds at every length
        for length in lengths:
            measured[length] = max(num, measured.get(length, 0))
        return values, 1e-12 * np.eye(len(lengths))

    found = search(measure, 0.02, 0.25, 1000, minimum_images=100)
    assert len(found.tried) <= MOST and len(measured) == len(found.tried)
    assert 3 * found.images <= 25_000 and found.images == sum(measured.values())
    lowest = min(found.confirmed, key=lambda s: measure([s], 1000)[0][0])
    assert max(lowest / best, best / lowest) < 1.2
