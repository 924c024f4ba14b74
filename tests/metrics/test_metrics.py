"""Moments and distances against NumPy, the closed form, and torch-fidelity itself."""

import zipfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from metrics.torch_fidelity_oracle import theirs
from scipy.linalg import sqrtm

from edm2lite.dataset import open_dataset
from edm2lite.metrics.digits_classifier import train_classifier
from edm2lite.metrics.extractors import open_extractor
from edm2lite.metrics.feature_stats import FeatureStats, feature_stats
from edm2lite.metrics.frechet import frechet_distance
from edm2lite.metrics.inputs import Reference
from edm2lite.metrics.kernel import kernel_distance
from edm2lite.metrics.manifold import precision_recall
from edm2lite.metrics.moments import check_moments


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


def float32_features(images, extractor):
    return [extractor.features(part).astype("float32") for part in images.split(len(images) // 2)]


def test_metrics_equal_torch_fidelity_on_the_same_images(extractor, images):
    halves = images.split(300)
    want = theirs(*halves, extractor, fid=True, kid=True, kid_subset_size=300, prc=True)
    a, b = (feature_stats(part.split(64), extractor, "") for part in halves)
    # theirs averages features in float32, ours in float64
    assert frechet_distance(a, b) == pytest.approx(want["frechet_inception_distance"], rel=1e-6)
    made, real = float32_features(images, extractor)
    mean, std = kernel_distance(made, real)
    assert mean == pytest.approx(want["kernel_inception_distance_mean"], rel=1e-6)
    assert std == pytest.approx(want["kernel_inception_distance_std"], rel=1e-6, abs=1e-9)
    assert precision_recall(made, real) == (want["precision"], want["recall"])


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """Inception as torch-fidelity builds it, with random weights that keep magnitudes."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, tensors):
            pass

    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save({}, path)
    net = Unloaded("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    torch.manual_seed(0)
    for value in net.parameters():
        if value.ndim > 1:
            torch.nn.init.kaiming_normal_(value)
    torch.save(net.state_dict(), path)
    return path


@pytest.mark.slow
def test_inception_equals_torch_fidelity(inception_file, images, caplog):
    extractor = open_extractor("inception-v3-compat", inception_file, torch.device("cpu"))
    few = images[:16]
    want = theirs(*few.split(8), extractor, fid=True)["frechet_inception_distance"]
    a, b = (feature_stats(part.split(8), extractor, "") for part in few.split(8))
    assert a.mean.shape == (2048,)
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-6)
    assert "8 images for 2048 features; the distance is biased" in caplog.text


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
    assert Path(b.weights) == extractor.weights and b.is_read and not a.is_read


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


def test_statistics_of_the_edm_family_are_read(tmp_path):
    mean, cov = np.arange(2048.0), np.eye(2048)
    np.savez(tmp_path / "ref.npz", mu=mean, sigma=cov)
    a = FeatureStats.load(tmp_path / "ref.npz")
    assert a.extractor == "inception-v3-compat" and np.array_equal(a.mean, mean)
    np.savez(tmp_path / "ref.npz", mu=mean[:7], sigma=cov[:7, :7])
    with pytest.raises(ValueError, match="2048 .* or 1024 .* features, has 7"):
        FeatureStats.load(tmp_path / "ref.npz")
    np.savez(tmp_path / "ref.npz", mean=mean)
    with pytest.raises(ValueError, match="mu and sigma"):
        FeatureStats.load(tmp_path / "ref.npz")


def test_a_data_set_in_place_of_statistics_is_not_called_damaged(tmp_path):
    path = tmp_path / "emoji.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.png", b"")
    for source, kind in ((path, "ZIP"), (tmp_path, "folder")):
        with pytest.raises(ValueError, match=f"it is a {kind}; if it is a data set, make") as error:
            FeatureStats.load(source)
        assert f"edm2lite evaluate stats {source} --out {source.stem}-stats" in str(error.value)


def test_missing_weights_without_network_are_named(tmp_path, monkeypatch):
    def offline(url, *args, **kwargs):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    for name, file in (
        ("inception-v3-compat", "weights-inception-2015-12-05-6726825d.pth"),
        ("dinov2-vit-l-14", "dinov2_vitl14_pretrain.pth"),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            open_extractor(name, None, torch.device("cpu"))
        message = str(caught.value)
        assert "no network" in message and "--weights" in message
        assert f"put it at {tmp_path}/hub/checkpoints/{file}" in message


def test_own_extractor_takes_three_lines(tmp_path, monkeypatch, images):
    (tmp_path / "my_features.py").write_text(
        "import torch\n"
        "def corner(weights): return Corner()\n"
        "class Corner(torch.nn.Module):\n"
        "    def forward(self, x): return x[:, :1, 2:4, 2:4].flatten(1).float()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    extractor = open_extractor("my_features:corner", None, torch.device("cpu"))
    a = feature_stats(images.split(100), extractor, "")
    expected = images[:, 0, 2:4, 2:4].double().mean(0).flatten()
    np.testing.assert_allclose(a.mean, expected, rtol=1e-12)


def test_a_file_that_names_an_extractor_does_not_have_it_imported(tmp_path, monkeypatch):
    (tmp_path / "their_features.py").write_text("raise RuntimeError('executed')\n")
    monkeypatch.syspath_prepend(tmp_path)
    other = FeatureStats(9, np.zeros(2), np.eye(2), "their_features:x", "", "", "made up")
    reference = Reference("file", other, None, torch.device("cpu"))
    with pytest.raises(ValueError, match="a file cannot have it imported"):
        _ = reference.extractor


def test_images_unlike_the_reference_are_refused(extractor, images):
    a = feature_stats(images.split(100), extractor, "digits")
    with pytest.raises(ValueError, match="1x8x8.*m has 1x16x16"):
        a.check_images("m", (1, 16, 16))
    with pytest.raises(ValueError, match="uint8 images"):
        extractor.features(images.float())


def test_features_that_are_not_finite_are_refused(extractor, images):
    class Broken(torch.nn.Module):
        def forward(self, x):
            return (x.flatten(1).float() / 0,)

    from dataclasses import replace

    with pytest.raises(ValueError, match="NaN or infinite"):
        replace(extractor, module=Broken()).features(images[:2])


@pytest.mark.parametrize(
    "mean, cov, message",
    [
        (np.zeros(()), np.eye(2), "have shapes"), (np.zeros(2), np.eye(3), "have shapes"),
        (np.zeros(2, int), np.eye(2), "floating-point"),
        (np.full(2, np.nan), np.eye(2), "finite"), (np.zeros(2), np.full((2, 2), 1e300), "finite"),
        (np.zeros(2), np.array([[1, 0.5], [0, 1]]), "not symmetric"),
        (np.zeros(2), np.diag([1.0, -0.1]), "negative"),
        (np.zeros(2), np.array([[1.0, 2.0], [2.0, 1.0]]), "negative"),
    ],
)  # fmt: skip
def test_moments_that_no_images_have_are_refused(tmp_path, mean, cov, message):
    with pytest.raises(ValueError, match=message):
        check_moments(mean, cov)
    stats = FeatureStats(9, mean, cov, "digits", "", "", "made up")
    with pytest.raises(ValueError, match=f"stats.safetensors must hold feature statis.*{message}"):
        FeatureStats.load(stats.save(tmp_path / "stats.safetensors"))


def test_moments_of_few_images_in_half_precision_are_taken():
    features = np.random.default_rng(0).standard_normal((10, 64)).astype(np.float16)
    check_moments(features.mean(0), np.cov(features.astype(np.float32), rowvar=False))
