"""Which lengths a sweep calls worse: on flat curves none, and one that is worse is found."""

import numpy as np
import pytest

from edm2lite.metrics.interval import alike, judge
from edm2lite.sweep import Point
from edm2lite.sweep.table import curve_words


def smooth(num):
    place = np.linspace(0, 1, num)
    return np.exp(-0.5 * ((place[:, None] - place) / 0.4) ** 2)


@pytest.mark.parametrize("num", [8, 25])
@pytest.mark.parametrize("joint", [np.eye, smooth], ids=["independent", "smooth"])
def test_on_a_flat_curve_no_length_is_called_worse_in_19_of_20_sweeps(num, joint):
    """It was called so in 41 % of sweeps of 8 lengths."""
    covariance, repeats = joint(num), 120
    values, vectors = np.linalg.eigh(covariance)
    factor = vectors * np.sqrt(np.maximum(values, 0))
    rng = np.random.default_rng(num)
    curves = rng.standard_normal((repeats, num)) @ factor.T
    wrong = sum(len(alike(curve, covariance)) < num for curve in curves)
    assert wrong <= 0.05 * repeats + 3 * (0.05 * 0.95 * repeats) ** 0.5
    difference = 2 - 2 * covariance[0, num // 2]
    curves[:, 0] += 3 * difference**0.5
    found = sum(0 not in alike(curve, covariance) for curve in curves)
    assert found >= 0.7 * repeats  # 0.81 for 25 independent lengths, 1 for those of a smooth curve


def test_a_length_that_is_worse_than_another_is_not_the_best():
    """Neighbors vary together: 0 is worse than 1 beyond doubt, and so is not the best."""
    joint = np.array([[1.0, 0.999, 0.0], [0.999, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert alike(np.array([1.5, 1.0, 0.0]), joint) == (1, 2)
    assert alike(-np.array([1.5, 1.0, 0.0]), joint, lower_is_better=False) == (1, 2)


def test_values_that_never_vary_differ_if_they_are_not_equal():
    assert alike(np.array([1.0, 1.0, 1.0 + 1e-9]), np.zeros((3, 3))) == (0, 1)
    together = np.ones((2, 2))  # the same to within rounding: nothing is known of the difference
    assert alike(np.array([1.0, 1.0 + 1e-9]), together) == (0, 1)


POINTS = [Point(s, 1024, value=v, num=100) for s, v in ((None, 1.0), (0.05, 3.0), (0.1, 2.0))]


@pytest.mark.parametrize(
    "deviation, expected",
    [
        (0.01, "Every average is worse."),
        (1.0, "Cannot be told apart from the raw weights: 5 %, 10 %."),
        (None, "cannot be told apart"),
    ],
)
def test_raw_weights_that_scored_best_are_what_the_verdict_says(deviation, expected):
    joint = None if deviation is None else deviation**2 * np.eye(3)
    verdict = judge([None, 0.05, 0.1], np.array([1.0, 3.0, 2.0]), joint)
    assert verdict.best == 0
    text = curve_words(POINTS, verdict, "fd")
    assert text.startswith("The raw weights scored best: FD 1. Best EMA length 10 %: FD 2.")
    assert text.endswith(expected) or expected in text


def test_raw_weights_that_may_be_the_best_are_named_in_the_verdict():
    points = [POINTS[0], Point(0.05, 1024, value=0.9, num=100), POINTS[2]]
    verdict = judge([None, 0.05, 0.1], np.array([1.0, 0.9, 2.0]), 0.01 * np.eye(3))
    text = curve_words(points, verdict, "fd")
    assert text.startswith("Best EMA length 5 %") and "from it: the raw weights." in text
