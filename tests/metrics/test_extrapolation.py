"""The bias of Fréchet distances, and their extrapolation to infinitely many images."""

import dataclasses
import itertools

import numpy as np
import pytest
from click.testing import CliRunner

from edm2lite.metrics import FeatureStats, evaluate, statistics
from edm2lite.metrics.digits_classifier import train_classifier
from edm2lite.metrics.extractors import Extractor
from edm2lite.metrics.extrapolation import FIDInfinity, FrechetInfinity
from edm2lite.metrics.frechet import FID, FrechetDistance, frechet_distance
from edm2lite.metrics.influence import covariance
from edm2lite.metrics.interval import normal_limits
from edm2lite.metrics.measurement import ImageRows
from edm2lite.tools.edm2lite import main as edm2lite

NAME = "made up"


def stats_of(mean, cov, extractor=NAME):
    return FeatureStats(0, mean, cov, extractor, "", "", NAME)


def metric_of(kind, mean, cov):
    return kind(stats_of(mean, cov), Extractor(NAME, None, None, ""))


def test_bias_depends_on_the_variety_of_the_images_and_is_no_ratio_of_features_to_images():
    """The formula of docs/sweep.md against normal features; features / images is 0.043."""
    dim, num = 32, 750
    metric = metric_of(FrechetDistance, np.zeros(dim), np.eye(dim))
    found = {}
    for deviation in (1.0, 0.8):
        rng = np.random.default_rng(1)
        distances = [
            metric.measure(ImageRows.of(deviation * rng.standard_normal((num, dim)))).value
            for _ in range(40)
        ]
        exact = dim * (1 - deviation) ** 2
        found[deviation] = np.mean(distances) - exact
        formula = dim * (deviation**2 + (dim + 1) * deviation / 4) / num
        assert found[deviation] == pytest.approx(formula, rel=0.08)  # of 40 repeats: 2 deviations
    assert found[1.0] > 8 * dim / num and found[0.8] < 0.85 * found[1.0]


def test_a_distance_of_few_images_is_extrapolated_to_that_of_the_distributions():
    dim, num, repeats = 16, 120, 60
    rng = np.random.default_rng(3)
    factor = rng.standard_normal((dim, dim)) / 4
    mean, cov = np.zeros(dim), factor @ factor.T + 0.1 * np.eye(dim)
    exact = frechet_distance(stats_of(mean + 0.1, 1.21 * cov), stats_of(mean, cov))
    metric = metric_of(FrechetInfinity, mean, cov)
    measured = []
    for _ in range(repeats):
        rows = 1.1 * rng.standard_normal((num, dim)) @ np.linalg.cholesky(cov).T + 0.1
        measured.append(metric.measure(ImageRows.of(rows)))
    values = np.array([m.value for m in measured])
    error = values.std() / repeats**0.5
    assert np.mean([m.details["fd"] for m in measured]) > exact + 20 * error
    assert values.mean() == pytest.approx(exact, abs=3 * error)
    inside = 0
    for m in measured:
        low, high = normal_limits(m.value, covariance([m.influences])[0, 0] ** 0.5)
        inside += low < exact < high
    assert inside >= 0.86 * repeats  # of 95 %; the frequency has deviation 0.028


def test_it_is_the_least_squares_parabola_through_all_unions_of_quarters():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((203, 5)) * 1.2 + 0.2
    mean, cov = np.zeros(5), np.eye(5)
    measured = metric_of(FrechetInfinity, mean, cov).measure(ImageRows.of(rows))
    edges = np.linspace(0, 203, 5).astype(int)
    quarters = [rows[a:b] for a, b in itertools.pairwise(edges)]
    places, distances = [], []
    for count in (2, 3, 4):
        for union in itertools.combinations(quarters, count):
            some = np.concatenate(union)
            places.append(4 / count)
            distances.append(
                frechet_distance(stats_of(some.mean(0), np.cov(some.T)), stats_of(mean, cov))
            )
    assert len(places) == 11
    assert measured.value == pytest.approx(np.polyfit(places, distances, 2)[2], rel=1e-6)
    assert measured.details["fd"] == pytest.approx(distances[-1], rel=1e-9)


def test_too_few_images_for_quarters_are_refused():
    with pytest.raises(ValueError, match="needs at least 8 images, got 7"):
        metric_of(FrechetInfinity, np.zeros(2), np.eye(2)).measure(ImageRows.of(np.eye(7)[:, :2]))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    weights = folder / "classifier.safetensors"
    train_classifier(weights, num_epochs=1)
    return statistics("digits", "digits", weights=weights)


def test_a_distance_in_other_features_is_not_called_fid(reference, tmp_path):
    scores = evaluate("digits", reference, "fid,fid_infinity", num=400)
    assert [s.metric for s in scores] == ["fd", "fd_infinity"]
    assert [s.title for s in scores] == ["fd(digits)", "fd_infinity(digits)"]
    assert scores[1].details["fd"] == pytest.approx(scores[0].value, rel=1e-6)
    assert scores[1].value < scores[0].value and scores[1].interval is not None
    path = reference.save(tmp_path / "reference.safetensors")
    words = ["evaluate", "digits", "--ref", path, "--weights", reference.weights, "--num", 400,
             "--metrics", "fid,fid_infinity"]  # fmt: skip
    done = CliRunner().invoke(edm2lite, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == [s.title for s in scores]


def test_a_distance_in_features_of_inception_is_called_fid(reference):
    of_inception = dataclasses.replace(reference, extractor="inception-v3-compat")
    for kind, other in ((FID, FrechetDistance), (FIDInfinity, FrechetInfinity)):
        assert kind.of_features(of_inception.extractor) is kind
        assert kind.of_features(reference.extractor) is other
    inception = Extractor("inception-v3-compat", None, None, "")
    assert FID(of_inception, inception).title == "fid"
    assert FIDInfinity(of_inception, inception).label == "FID-infinity"
