"""Recall of captions: against its definition, in evaluate and sweeps; the network behind it."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from edm2lite.dataset import ImageDataset, open_dataset
from edm2lite.dataset.captions import Captions
from edm2lite.metrics import evaluate, find_metric, statistics
from edm2lite.metrics.caption_recall import recalled
from edm2lite.metrics.digits_classifier import train_classifier
from edm2lite.metrics.extractors import open_extractor
from edm2lite.metrics.feature_stats import FeatureStats
from edm2lite.metrics.interval import wilson_limits
from edm2lite.metrics.retrieval import augmented, small, train_retrieval
from edm2lite.models.loading import load
from edm2lite.sampling import Sampling
from edm2lite.sampling.generation import generate
from edm2lite.sweep import read_csv
from edm2lite.tensorfile import load_tensors
from edm2lite.tools.edm2lite import main as edm2lite
from edm2lite.tools.sweep_ema import main as sweep_command

RNG = np.random.default_rng(0)


def pictures(num=60, side=16):
    """Blocks of color that are easy to tell apart, with a caption each."""
    blocks = RNG.integers(0, 256, (num, 3, 4, 4), dtype=np.uint8)
    images = blocks.repeat(side // 4, axis=2).repeat(side // 4, axis=3)
    captions = Captions([(f"picture {i}", "some picture") for i in range(num)])
    return ImageDataset("pictures", num, (3, side, side), lambda i: images[i], captions=captions)


@pytest.fixture(scope="module")
def dataset():
    return pictures()


@pytest.fixture(scope="module")
def weights(dataset, tmp_path_factory):
    path = tmp_path_factory.mktemp("retrieval") / "net.safetensors"
    found = train_retrieval(dataset, path, num_samples=1280)
    assert (found.num, found.among) == (3, 60)
    assert found.fifth > 0.9  # chance is 5 of 60
    return path


@pytest.fixture(scope="module")
def reference(dataset, weights):
    return statistics(dataset, "retrieval", weights=weights, keep_features=True)


def by_definition(features, captions, reference, texts, rank):
    """Chance that a random order of equally near images has one of the caption up to a rank."""
    hits = []
    for feature, caption in zip(features.astype(np.float64), captions, strict=True):
        cosines = [
            float(feature @ r / np.linalg.norm(feature) / np.linalg.norm(r))
            for r in reference.astype(np.float64)
        ]
        trials = []
        for _ in range(400):
            order = sorted(range(len(cosines)), key=lambda i: (-round(cosines[i], 6), RNG.random()))
            best = next(k for k, i in enumerate(order) if caption in texts[i])
            trials.append(best < rank)
        hits.append(np.mean(trials))
    return np.array(hits)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_recall_is_the_chance_to_find_the_caption_up_to_a_rank(rank):
    reference = RNG.standard_normal((12, 4)).astype(np.float32)
    reference[3] = reference[7] = 2 * reference[5]  # the same direction, other captions
    texts = [(f"{i}",) for i in range(12)]
    texts[9] = ("9", "0")  # a caption of two images
    texts[11] = ()
    captions = ["0", "3", "5", "7", "9", "10", "1", "2"]
    features = reference[[1, 3, 5, 7, 0, 10, 4, 2]] + 0.01 * RNG.standard_normal((8, 4))
    features = features.astype(np.float32)
    found = recalled(features, captions, reference, Captions(texts), rank)
    expected = by_definition(features, captions, reference, texts, rank)
    np.testing.assert_allclose(found, expected, atol=5 * 0.5 / 20)  # 400 trials
    assert found[5] == found[7] == 1


def test_features_that_tell_nothing_apart_have_the_recall_of_chance():
    ones = np.ones((20, 3), np.float32)
    texts = Captions([(str(i),) for i in range(20)])
    found = recalled(ones[:4], ["0", "1", "2", "3"], ones, texts, rank=5)
    np.testing.assert_allclose(found, 5 / 20)


def test_images_of_the_reference_find_themselves_and_others_do_not(dataset, reference, weights):
    first, fifth = evaluate(dataset, reference, "caption_recall", weights=[weights])
    assert (first.metric, fifth.metric) == ("caption_recall_1", "caption_recall_5")
    assert first.value == fifth.value == 1
    assert first.interval == pytest.approx(wilson_limits(1.0, 0.0, 60))
    turned = dataclasses.replace(
        dataset, captions=Captions([dataset.captions.texts[(i + 7) % 60] for i in range(60)])
    )
    first, fifth = evaluate(turned, reference, "caption_recall", weights=[weights])
    assert first.value == 0 and fifth.value < 0.2


def test_the_interval_is_wilsons(dataset, reference, weights):
    half = [dataset.captions.texts[i if i < 45 else (i + 7) % 60] for i in range(60)]
    mixed = dataclasses.replace(dataset, captions=Captions(half))
    (score,) = evaluate(mixed, reference, "caption_recall_1", weights=[weights])
    assert score.value == 0.75
    expected = wilson_limits(0.75, 0.75 * 0.25 / 59, 60)
    assert score.interval == pytest.approx(expected, rel=1e-9)


def test_captions_are_kept_with_the_features_in_the_file(reference, tmp_path):
    path = reference.save(tmp_path / "ref.safetensors")
    read = FeatureStats.load(path)
    assert read.captions == reference.captions
    np.testing.assert_array_equal(read.features, reference.features)
    shorter = dataclasses.replace(reference, captions=reference.captions.rows(range(59)))
    with pytest.raises(ValueError, match="it has 59 captions"):
        FeatureStats.load(shorter.save(tmp_path / "short.safetensors"))


def test_training_twice_gives_the_same_weights_and_leaves_random_numbers_alone(
    dataset, weights, tmp_path
):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train_retrieval(dataset, tmp_path / "again.safetensors", num_samples=1280)
    assert torch.get_rng_state().equal(before)
    first, second = (load_tensors(p)[0] for p in (weights, tmp_path / "again.safetensors"))
    assert all(first[name].equal(second[name]) for name in first)


def test_augmentation_moves_and_recolors_within_its_limits():
    torch.manual_seed(0)
    x = torch.zeros(256, 3, 32, 32)
    x[:, :, 15:17, 15:17] = 1  # a dot in the middle
    y = augmented(x)
    brightness = y.mean(dim=(1, 2, 3)) - x.mean(dim=(1, 2, 3))
    assert brightness.abs().max() < 0.5 * (np.exp(0.2) - 1) + 0.08 + 0.02
    assert brightness.std() > 0.02
    places = y.mean(dim=1).flatten(1).argmax(dim=1)
    rows, columns = places // 32, places % 32
    limit = 16 * 0.15 * np.sqrt(2) * np.exp(0.15) + 2
    for place in (rows, columns):
        assert (place - 15.5).abs().max() < limit and place.float().std() > 0.5


def test_images_of_any_size_and_gray_ones_have_features(weights):
    extractor = open_extractor("retrieval", weights)
    images = torch.from_numpy(pictures(3).images(range(3)))
    large = images.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    np.testing.assert_allclose(extractor.features(large), extractor.features(images), atol=1e-4)
    assert extractor.features(images[:, :1]).shape == (3, 128)
    np.testing.assert_allclose(np.square(extractor.features(images)).mean(1), 1, rtol=1e-5)
    assert small(images).shape == (3, 3, 32, 32)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"captions": None}, "needs a caption for each image of pictures, none has; give --cond"),
        ({"captions": Captions([("picture 0",)] * 59 + [()])}, "some have none"),
        ({"captions": Captions([("else",)] * 60)}, "among those of the reference .* 'else' is not"),
    ],
)
def test_images_without_usable_captions_are_refused(change, message, dataset, reference, weights):
    with pytest.raises(ValueError, match=message):
        evaluate(
            dataclasses.replace(dataset, **change), reference, "caption_recall", weights=[weights]
        )


def test_a_reference_without_captions_or_features_is_refused(dataset, reference, weights):
    for change, message in (
        ({"captions": None}, "needs the captions of the reference images, pictures has none"),
        ({"captions": None, "features": None}, "needs the features of the reference images"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(
                dataset, dataclasses.replace(reference, **change), "caption_recall",
                weights=[weights],
            )  # fmt: skip
    with pytest.raises(ValueError, match="one of caption_recall_1, caption_recall_5"):
        find_metric("caption_recall")
    few = dataclasses.replace(dataset, num_images=39, captions=None)
    with pytest.raises(ValueError, match="pictures must have at least 40 images, it has 39"):
        train_retrieval(few, weights)


def run(command, *words):
    result = CliRunner().invoke(command, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder of 70 digits, each with the caption of its class, and its statistics."""
    folder = tmp_path_factory.mktemp("captioned")
    plain, labels, captions = open_dataset("digits"), [], []
    for i in range(70):
        name, label = f"{i:02d}.png", int(plain.labels[i])
        Image.fromarray(plain.read(i)[0]).save(folder / name)
        labels.append([name, label])
        captions.append([name, f"the digit {label}"])
    text = json.dumps({"labels": labels, "label_dim": 10, "captions": captions})
    (folder / "dataset.json").write_text(text)
    weights = folder.with_name("classifier.safetensors")
    train_classifier(weights, num_epochs=1)
    reference = folder.with_name("reference.safetensors")
    run(edm2lite, "evaluate", "stats", folder, "--features", "--extractor", "digits",
        "--weights", weights, "--out", reference)  # fmt: skip
    return folder, reference, weights


def test_evaluate_and_sweep_say_how_many_images_find_their_caption(run_dir, digits, tmp_path):
    folder, reference, weights = digits
    given = ("--ref", reference, "--weights", weights, "--conditions", folder, "--steps", 2)
    model, dataset = f"{run_dir}@sigma_rel=0.1", open_dataset(folder)
    images = generate(model, range(90), conditioning=dataset, sampling=Sampling(num_steps=2))
    found = open_extractor("digits", weights).features(images).astype(np.float32)
    captions = [f"the digit {dataset.labels[seed % 70]}" for seed in range(90)]
    known = FeatureStats.load(reference)
    expected = {
        rank: recalled(found, captions, known.features, known.captions, rank) for rank in (1, 5)
    }
    assert 0 < expected[1].mean() < expected[5].mean() < 1
    text = run(edm2lite, "evaluate", model, "--metrics", "caption_recall", "--num", 90, *given)
    for rank, share in expected.items():
        assert f"caption_recall_{rank}  {share.mean():.4f}" in text
    run(sweep_command, run_dir, "--sigma-rel", "0.1,0.2", "--metric", "caption_recall_5",
        "--num", 60, "--seed", 30, *given, "--out", tmp_path)  # fmt: skip
    (point,) = [p for p in read_csv(tmp_path / "sweep.csv") if p.sigma_rel == 0.1]
    assert point.value == pytest.approx(expected[5][30:].mean(), abs=1e-6)
    assert point.low < point.value < point.high


def test_the_command_trains_on_a_data_set_and_says_how_well(digits, tmp_path):
    out = tmp_path / "net.safetensors"
    text = run(edm2lite, "classifier", "--data", digits[0], "--samples", 134, "--out", out)
    assert "copies of 3 held-out images find the original among 70 images" in text
    _, metadata = load_tensors(out)
    assert f"{float(metadata['recall_5']):.1%} among the five nearest" in text
    assert run(edm2lite, "classifier", "--data", digits[0], "--out", out).endswith("already\n")


def test_a_model_that_is_told_no_captions_is_refused(run_dir, digits):
    _, reference, weights = digits
    with pytest.raises(ValueError, match="caption_recall_1 needs a caption .* none has; give --co"):
        evaluate(run_dir, reference, "caption_recall_1", weights=[weights], num=3)


def test_images_of_a_model_that_is_told_no_text_are_called_by_their_classes(run_dir, digits):
    from edm2lite.metrics.image_source import Generation

    dataset = open_dataset(digits[0])
    for generation in (Generation(Sampling(), conditions=dataset),
                       Generation(Sampling(), reference_captions=dataset.captions)):  # fmt: skip
        labels = generation.generator(load(run_dir), range(5)).labels
        assert generation.titles(load(run_dir), 5) == {"classes": [str(k) for k in labels]}


def test_rows_of_other_captions_of_the_reference_are_others():
    from edm2lite.metrics.image_source import Generation

    first, second = (
        Generation(Sampling(), reference_captions=Captions([(text,)])) for text in ("a", "b")
    )
    assert first.record != second.record
    assert first.record == Generation(Sampling(), reference_captions=Captions([("a",)])).record
