"""Heavy tails of influences: what they do to intervals, and that they are reported."""

import numpy as np
import pytest
from scipy import stats

from edm2lite.metrics import ImageMetric, Measurement, evaluate
from edm2lite.metrics.frechet import distance_of, frechet_influences, square_root
from edm2lite.metrics.influence import cautious_covariance, covariance
from edm2lite.metrics.measurement import ImageRows
from edm2lite.metrics.moments import RunningMoments
from edm2lite.metrics.tails import Tails


def test_light_tails_leave_an_interval_as_it_was():
    rng = np.random.default_rng(0)
    tails = Tails.of(rng.standard_normal((1, 1000)))
    assert (tails.widening, tails.stretch, tails.certainty) == (1.0, 1.0, 1.0)
    coin = Tails.of(np.zeros((1, 50)))
    assert coin.kurtosis == 1 and coin.widening == 1 and not coin.are_heavy


def test_heavy_tails_widen_by_the_quantile_of_student():
    values = np.zeros(1000)
    values[:10] = np.arange(10) - 3.0
    tails = Tails.of(values[None])
    freedom = 1000 / (stats.kurtosis(values, fisher=False) - 1)
    assert tails.freedom == pytest.approx(freedom) and freedom < 20 and tails.are_heavy
    assert tails.skewness == pytest.approx(stats.skew(values))
    expected = stats.t.ppf(0.975, freedom) / stats.t.ppf(0.975, 100)
    assert tails.widening == pytest.approx(expected) and tails.stretch > 1
    rows = [values[None], np.random.default_rng(0).standard_normal((1, 1000))]
    joint = covariance(rows)
    wide = cautious_covariance(rows)
    assert wide[0, 0] == pytest.approx(joint[0, 0] * expected**2) and wide[1, 1] == joint[1, 1]
    assert wide[0, 1] == pytest.approx(joint[0, 1] * expected)


class Brightness(ImageMetric):
    def rows(self, images, conditioning):
        return images.float().mean(dim=(1, 2, 3))[:, None].numpy()

    def measure(self, rows):
        return Measurement.of_mean(rows.array()[:, 0], rows.num_classes)


def test_an_interval_that_a_few_images_decide_is_reported():
    images = np.random.default_rng(0).integers(0, 3, (200, 1, 8, 8), dtype=np.uint8)
    (even,) = evaluate(images, metrics=[Brightness])
    images[7] = 255
    (score,) = evaluate(images, metrics=[Brightness])
    assert even.note == "" and "A few images decide the interval" in score.note
    low, high = score.interval
    assert high - score.value > 1.5 * (score.value - low)  # the long side


@pytest.mark.slow
def test_intervals_of_features_with_a_heavy_scale_per_image_cover():
    """Pooled, nonnegative features times a heavy scale: excess kurtosis about 30."""
    rng = np.random.default_rng(11)
    dim, num, repeats = 48, 100, 400
    weights = rng.standard_normal((24, dim)) / 24**0.5

    def draw(count):
        places = rng.standard_normal((count, 1, 24)) + 0.8 * rng.standard_normal((count, 4, 24))
        features = np.maximum(places @ weights - 1.2, 0).mean(axis=1)
        return features * np.sqrt(8 / rng.chisquare(8, count))[:, None]

    population = draw(200_000)
    mean, root = population.mean(0), square_root(np.cov(population.T))
    covered = {"with tails": 0, "without": 0}
    found = []
    for _ in range(repeats):
        rows = ImageRows.of(draw(num))
        influences = frechet_influences(rows, mean, root)
        found.append((distance_of(rows.moments[0], mean, root), influences))
    middle = np.mean([value for value, _ in found])
    for value, influences in found:
        tails = Tails.of(influences)
        half = 1.96 * covariance([influences])[0, 0] ** 0.5
        covered["without"] += abs(value - middle) < half
        wide = 1.96 * cautious_covariance([influences])[0, 0] ** 0.5
        up, down = (tails.stretch, 1) if tails.skewness > 0 else (1, tails.stretch)
        covered["with tails"] += value - wide * down < middle < value + wide * up
    assert covered["without"] < 0.90 * repeats <= covered["with tails"], covered


def test_moments_of_few_rows_have_a_distance():
    moments = RunningMoments()
    moments.add(np.array([[3.0, 5.0], [3.0, 3.0]]))
    expected = 25 + 1 + (2**0.5 - 1) ** 2
    assert distance_of(moments, np.zeros(2), np.eye(2)) == pytest.approx(expected)
