"""Moments and distances against NumPy, the closed form, and torch-fidelity itself; the ledger."""

import json

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from edm2lite import sweep
from edm2lite.dataset import open_dataset
from edm2lite.digits import train_classifier
from edm2lite.fidelity import (
    FeatureStats,
    extractor_weights,
    feature_stats,
    frechet_distance,
    open_extractor,
)


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier") / "classifier.safetensors"
    assert train_classifier(path, num_epochs=3) > 0.8
    return open_extractor("digits", path, torch.device("cpu"))


@pytest.fixture(scope="module")
def images():
    digits = open_dataset("digits")
    return torch.from_numpy(digits.images(range(600)))


def stats(mean, cov):
    return FeatureStats(100, np.asarray(mean), np.asarray(cov), "x", "", "", "made up")


def test_moments_equal_numpy_whatever_the_batches(extractor, images):
    measured = feature_stats(images.split(97), extractor, "digits")
    features = extractor.features(images)
    np.testing.assert_allclose(measured.mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(measured.cov, np.cov(features.T), rtol=1e-9, atol=1e-12)
    assert measured.count == 600


def test_distance_equals_torch_fidelity_on_the_same_images(extractor, images):
    from torch_fidelity import calculate_metrics

    class Rgb(torch.utils.data.Dataset):
        def __init__(self, part):
            self.part = part

        def __len__(self):
            return len(self.part)

        def __getitem__(self, i):
            return self.part[i].expand(3, -1, -1)

    theirs = calculate_metrics(
        input1=Rgb(images[:300]), input2=Rgb(images[300:]), fid=True, cuda=False, verbose=False,
        feature_extractor="digits", feature_extractor_weights_path=str(extractor.weights),
        batch_size=300, save_cpu_ram=True,
    )["frechet_inception_distance"]  # fmt: skip
    a, b = (feature_stats(part.split(64), extractor, "") for part in images.split(300))
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-5)


def test_distance_of_gaussians_is_the_closed_form():
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((2, 6, 6))
    covs = [f @ f.T for f in factors]
    means = rng.standard_normal((2, 6))
    root = sqrtm(sqrtm(covs[0]) @ covs[1] @ sqrtm(covs[0])).real
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(covs[0] + covs[1] - 2 * root)
    got = frechet_distance(stats(means[0], covs[0]), stats(means[1], covs[1]))
    assert got == pytest.approx(expected, rel=1e-8)


def test_distance_to_itself_is_zero(extractor, images):
    a = feature_stats(images.split(100), extractor, "")
    assert abs(frechet_distance(a, a)) < 1e-6


def test_statistics_survive_their_file(extractor, images, tmp_path):
    a = feature_stats(images.split(100), extractor, "digits")
    b = FeatureStats.load(a.save(tmp_path / "stats.safetensors"))
    np.testing.assert_array_equal(a.cov, b.cov)
    assert (b.count, b.source, b.extractor) == (600, "digits", "digits")
    assert extractor_weights(b, None) == extractor.weights


def test_statistics_of_other_features_are_refused(extractor, images):
    a = feature_stats(images.split(100), extractor, "")
    other = FeatureStats(a.count, a.mean, a.cov, "inception-v3-compat", "", "", "")
    with pytest.raises(ValueError, match="same features"):
        frechet_distance(a, other)


def test_missing_extractor_and_weights_are_explained(tmp_path):
    cpu = torch.device("cpu")
    with pytest.raises(ValueError, match="extractor must be one of .*digits.*inception"):
        open_extractor("nope", None, cpu)
    with pytest.raises(FileNotFoundError, match="no extractor weights"):
        open_extractor("digits", tmp_path / "x", cpu)
    with pytest.raises(ValueError, match="edm2lite classifier"):
        open_extractor("digits", None, cpu)


class Hostile:
    def __reduce__(self):
        return (open, ("executed", "w"))


def test_hostile_extractor_weights_are_refused_and_nothing_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"fc.weight": Hostile()}, tmp_path / "inception.pth")
    (tmp_path / "noise.pth").write_bytes(b"\x80\x04nonsense")
    for name in ("inception.pth", "noise.pth"):
        with pytest.raises(ValueError, match="nothing in it was executed"):
            open_extractor("inception-v3-compat", tmp_path / name, torch.device("cpu"))
    assert not (tmp_path / "executed").exists()


def test_weights_of_another_architecture_are_refused(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "inception.pth")
    with pytest.raises(ValueError, match="does not fit extractor inception-v3-compat"):
        open_extractor("inception-v3-compat", tmp_path / "inception.pth", torch.device("cpu"))


def test_one_image_has_no_covariance(extractor, images):
    with pytest.raises(ValueError, match="at least 2 images"):
        feature_stats([images[:1]], extractor, "one")


SETTING = sweep.Setting("a1b2", 1024, 100, 12, "digits", "d1")


def point(sigma_rel, fd):
    return sweep.Point(sigma_rel, None if sigma_rel is None else 6.9, 1024, 0.0, fd, 100)


def test_ledger_remembers_points_under_their_setting(tmp_path):
    ledger = sweep.Ledger(tmp_path / "sweep.jsonl")
    ledger.add(SETTING, point(0.1, 2.0))
    ledger.add(SETTING, point(None, 3.0))
    again = sweep.Ledger(tmp_path / "sweep.jsonl")
    assert again.get(SETTING, 0.1) == point(0.1, 2.0) and again.get(SETTING, None).fd == 3.0
    assert again.get(SETTING, 0.2) is None
    other = sweep.Setting("a1b2", 1024, 200, 12, "digits", "d1")
    assert again.get(other, 0.1) is None


def test_ledger_survives_a_line_cut_short(tmp_path):
    path = tmp_path / "sweep.jsonl"
    ledger = sweep.Ledger(path)
    ledger.add(SETTING, point(0.1, 2.0))
    whole = path.read_text()
    for cut in range(1, len(whole)):
        path.write_text(whole + whole[:cut])
        again = sweep.Ledger(path)
        again.add(SETTING, point(0.2, 1.0))
        assert [json.loads(line)["point"]["fd"] for line in path.read_text().splitlines()] == [2, 1]
        path.unlink()


def test_best_is_the_lowest_average_and_never_the_raw_weights():
    points = [point(None, 1.0), point(0.05, 3.0), point(0.1, 2.0)]
    assert sweep.best(points).sigma_rel == 0.1


def test_table_survives_its_file(tmp_path):
    points = [point(None, 1.0), point(0.05, 3.123456789)]
    sweep.write_csv(tmp_path / "sweep.csv", points)
    assert sweep.read_csv(tmp_path / "sweep.csv") == points
