"""`evaluate` and `statistics` in Python: those of the commands, metrics of a user's, conditions."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from edm2lite.dataset import ImageDataset, open_dataset
from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.metrics import (
    FeatureStats,
    ImageMetric,
    Measurement,
    evaluate,
    find_metrics,
    open_extractor,
    statistics,
)
from edm2lite.metrics.digits_classifier import train_classifier
from edm2lite.metrics.inputs import Reference
from edm2lite.models.encoders import PixelEncoder
from edm2lite.models.loading import Model
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.conditions import ConditionImage
from edm2lite.network.unet import UNetConfig
from edm2lite.sampling import Sampling
from edm2lite.sampling.generation import generate
from edm2lite.tools.edm2lite import main as edm2lite

FEW = Sampling(num_steps=1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier") / "classifier.safetensors"
    train_classifier(path, num_epochs=1)
    return path


@pytest.fixture(scope="module")
def reference(weights):
    return statistics("digits", "digits", weights=weights, keep_features=True)


def printed(*words):
    result = CliRunner().invoke(edm2lite, ["evaluate", *map(str, words)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_statistics_are_those_of_the_command(reference, weights, tmp_path):
    out = tmp_path / "stats.safetensors"
    printed("stats", "digits", "--extractor", "digits", "--weights", weights, "--features",
            "--out", out)  # fmt: skip
    stats = FeatureStats.load(out)
    assert stats.digest == reference.digest and stats.count == reference.count == 1797
    np.testing.assert_array_equal(stats.features, reference.features)


def test_scores_of_a_model_are_those_that_the_command_prints(run_dir, reference, weights, tmp_path):
    path = reference.save(tmp_path / "stats.safetensors")
    names, common = "fid,kid,prc,loss", {"num": 300, "sampling": FEW, "data": "digits"}
    scores = evaluate(f"{run_dir}@sigma_rel=0.1", reference, names, **common)
    text = printed(f"{run_dir}@sigma_rel=0.1", "--ref", path, "--weights", weights, "--metrics",
                   names, "--num", 300, "--steps", 1, "--data", "digits")  # fmt: skip
    lines = [line.split() for line in text.splitlines()[1:]]
    assert [line[0] for line in lines] == ["fd(digits)", "kid", "precision", "recall", "loss"]
    for score, (name, value, low, _, high, *_) in zip(scores, lines, strict=True):
        expected = (score.value, *score.interval)
        assert (value, low, high) == tuple(f"{x:{score.number_format}}" for x in expected), name
        assert score.interval[0] <= score.value < score.interval[1] and score.num == 300


def test_images_are_the_same_from_a_tensor_a_data_set_and_a_name(reference):
    digits = open_dataset("digits")
    pixels = digits.images(range(400))
    sources = ("digits", digits, pixels, torch.from_numpy(pixels))
    values = [evaluate(source, reference, ["fid"], num=400)[0].value for source in sources]
    assert values[1:] == values[:1] * 3


class Counted(ImageMetric):
    """Counts the images that rows are made of."""

    made = 0

    def rows(self, images, conditioning):
        Counted.made += len(images)
        return images.float().mean(dim=(1, 2, 3))[:, None].numpy()

    def measure(self, rows):
        return Measurement.of_mean(rows.array()[:, 0], rows.num_classes)


def test_rows_in_the_cache_are_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(Counted, "made", 0)
    digits = open_dataset("digits")
    for num, made in ((300, 300), (300, 300), (310, 310), (100, 310)):
        (score,) = evaluate(digits, None, [Counted], num=num, cache=tmp_path)
        assert Counted.made == made
        expected = digits.images(range(num)).mean(axis=(1, 2, 3))
        assert score.value == pytest.approx(expected.mean(), rel=1e-6)
        low, high = score.interval
        assert high - low == pytest.approx(2 * 1.96 * expected.std(ddof=1) / num**0.5, rel=1e-3)


OWN = """
import numpy as np
from edm2lite.metrics import FeatureMetric, ImageMetric, Measurement

class Brightness(ImageMetric):
    lower_is_better = False

    def rows(self, images, conditioning):
        return images.float().mean(dim=(1, 2, 3))[:, None].numpy()

    def measure(self, rows):
        return Measurement.of_mean(rows.array()[:, 0], rows.num_classes)

class MeanDistance(FeatureMetric):
    label = "distance of means"

    def measure(self, rows):
        return Measurement(float(np.linalg.norm(rows.array().mean(axis=0) - self.reference.mean)))

class Accuracy(ImageMetric):  # of the label that the network was told, by a rule of thumb
    is_share = True

    def rows(self, images, conditioning):
        return (images.sum(dim=(1, 2, 3)) % 10 == conditioning["label"])[:, None].numpy()

    def measure(self, rows):
        return Measurement.of_mean(rows.array()[:, 0], rows.num_classes)
"""


@pytest.fixture
def own_metrics(tmp_path, monkeypatch):
    assert len(OWN.strip().splitlines()) <= 30
    (tmp_path / "own_metrics.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_metrics", None)


@pytest.mark.usefixtures("own_metrics")
def test_metrics_of_a_users_are_evaluated_by_name(run_dir, reference, tmp_path):
    names = "own_metrics:Brightness,own_metrics:MeanDistance,own_metrics:Accuracy"
    scores = evaluate(run_dir, reference, names, num=130, sampling=FEW)
    images = generate(run_dir, range(130), classes="all", sampling=FEW)
    assert scores[0].value == pytest.approx(images.float().mean().item(), rel=1e-5)
    features = open_extractor("digits", reference.weights).features(images)
    expected = np.linalg.norm(features.mean(axis=0) - reference.mean)
    assert scores[1].value == pytest.approx(expected, rel=1e-5) and scores[1].interval is None
    right = images.sum(dim=(1, 2, 3)) % 10 == torch.arange(130) % 10
    assert scores[2].value == pytest.approx(right.float().mean().item())
    path = reference.save(tmp_path / "stats.safetensors")
    lines = printed(run_dir, "--ref", path, "--weights", reference.weights, "--metrics", names,
                    "--num", 130, "--steps", 1)  # fmt: skip
    texts = [line.split()[0] for line in lines.splitlines()[1:]]
    assert texts == names.split(",")


def test_a_metric_without_what_it_needs_says_what_to_give(reference):
    bare = dataclasses.replace(reference, features=None)
    for metric, ref, message in (
        ("fid", None, "fid needs reference statistics"),
        ("fd_dinov2", reference, "fid is the distance in such features"),
        ("kid", bare, "evaluate stats --features"),
        ("loss", None, "loss needs images"),
        ("nope", None, "metric must be one of fid, fd_dinov2, kid, precision, recall, loss"),
        ("nope:X", None, "there is no module nope"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate("digits", ref, metric)
    with pytest.raises(ValueError, match="loss is a metric of a model, digits holds images"):
        evaluate("digits", None, "loss", data="digits")
    with pytest.raises(ValueError, match="digits holds 1797 images, got --num 2000"):
        evaluate("digits", reference, "fid", num=2000)


def test_an_extractor_of_a_users_is_remembered_by_its_name_and_not_imported(tmp_path, monkeypatch):
    (tmp_path / "own_features.py").write_text(
        "import torch\ndef flat(weights): return torch.nn.Flatten()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    stats = tmp_path / "stats.safetensors"
    printed("stats", "digits", "--extractor", "own_features:flat", "--out", stats)
    sys.modules.pop("own_features")
    words = ["evaluate", "digits", "--ref", str(stats), "--num", "400"]
    refused = CliRunner().invoke(edm2lite, words)
    assert refused.exit_code == 1 and "give --plugin own_features" in refused.output
    allowed = CliRunner().invoke(edm2lite, [*words, "--plugin", "own_features"])
    assert allowed.exit_code == 0 and allowed.stdout.splitlines()[1].startswith(
        "fd(own_features:flat)"
    )


def test_several_references_go_to_the_metrics_that_they_are_for(reference):
    dinov2 = dataclasses.replace(reference, extractor="dinov2-vit-l-14", features=None)
    references = [Reference(s.extractor, s, None, "cpu") for s in (dinov2, reference)]
    fid, fd_dinov2, kid = find_metrics("fid,fd_dinov2,kid")
    assert [r.name for r in fid.choose(references)] == ["digits"]
    assert [r.name for r in fd_dinov2.choose(references)] == ["dinov2-vit-l-14"]
    assert [r.name for r in kid.choose(references)] == ["digits"]
    assert [r.name for r in kid.choose(references[:1])] == ["dinov2-vit-l-14"]


class ToldPictures(ImageDataset):
    """A data set of which the network is told a picture."""

    @property
    def conditions(self):
        return (ConditionImage(channels=1),)

    def conditioning(self, indices, names=None):
        values = torch.tensor([i + 1.0 for i in indices])[:, None, None, None]
        return Conditioning({"image": values.expand(-1, 1, 8, 8)})


def test_conditions_come_from_a_data_set_where_they_have_to_be_given():
    unet = UNetConfig(
        img_resolution=8, img_channels=1, label_dim=3, cond_channels=1, model_channels=16,
        head_channels=16, channel_mult=(1,), num_blocks=1, attn_resolutions=(),
    )  # fmt: skip
    model = Model("m", Precond(PrecondConfig(backbone=unet)), PixelEncoder(), {})
    with pytest.raises(ValueError, match="image must be given"):
        evaluate(model, None, [Told], num=5, sampling=FEW)
    pictures = ToldPictures("pictures", 2, (1, 8, 8), read=lambda index: None)
    (score,) = evaluate(model, None, [Told], num=5, sampling=FEW, conditions=pictures)
    # rows 0, 1, 0, 1, 0 of the pictures, of value 1 and 2, and the classes in turn
    assert score.details == pytest.approx({"image": 7 / 5, "label": (0 + 1 + 2 + 0 + 1) / 5})


class Told(ImageMetric):
    """Means of what the network was told."""

    def rows(self, images, conditioning):
        image = conditioning["image"].mean(dim=(1, 2, 3))
        return torch.stack([image, conditioning["label"].float()], dim=1).numpy()

    def measure(self, rows):
        image, label = rows.array().mean(axis=0)
        return Measurement(0.0, None, {"image": float(image), "label": float(label)})


def test_labels_of_a_data_set_are_told_in_its_order(run_dir, reference):
    in_turn = evaluate(run_dir, reference, "fid", num=130, sampling=FEW)
    digits = evaluate(run_dir, reference, "fid", num=130, sampling=FEW, conditions="digits")
    labels = torch.from_numpy(open_dataset("digits").labels[:130])
    images = generate(run_dir, range(130), conditioning=labels, sampling=FEW)
    (expected,) = evaluate(images, reference, "fid")
    assert digits[0].value == pytest.approx(expected.value, rel=1e-6)  # float32 features
    assert abs(digits[0].value - in_turn[0].value) > 1e-3 * expected.value
