"""Models that are told text, in metrics, magnitudes and exports: captions are prompts."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sampling.generating import images
from text import captioned_digits
from text.text_models import save_text_model
from text.tiny_encoders import WORDS

from edm2lite.dataset.text import told_by
from edm2lite.metrics.feature_stats import FeatureStats
from edm2lite.metrics.held_out_loss import DenoisingRows, HeldOutLoss
from edm2lite.metrics.image_source import Generation
from edm2lite.metrics.inputs import MetricInputs
from edm2lite.models.hub import from_pretrained, save_pretrained
from edm2lite.models.loading import load
from edm2lite.sampling.settings import Sampling
from edm2lite.text import named_text_encoder
from edm2lite.tools.edm2lite import main as edm2lite

SHORT = Sampling(num_steps=2)


@pytest.fixture(scope="module")
def encoder(table):
    return named_text_encoder(f"static:{table}", 6).measured(WORDS)


@pytest.fixture(scope="module")
def file(encoder, tmp_path_factory):
    return save_text_model(tmp_path_factory.mktemp("models") / "text.safetensors", encoder)


def test_metrics_tell_a_model_the_captions_of_the_conditions_in_turn(file):
    model, dataset = load(file), captioned_digits.held_out()
    generation = Generation(SHORT, first_seed=98, conditions=dataset)
    seeds = range(98, 102)
    prompts = [dataset.captions.text(seed % 100) for seed in seeds]
    found = torch.cat([batch.images for batch in generation.generator(model, range(4))])
    assert found.equal(images(model, seeds, prompts=prompts, sampling=SHORT))
    assert generation.captions(model, 4) == prompts


def test_without_conditions_metrics_take_the_captions_of_the_reference(file, encoder, tmp_path):
    captions = captioned_digits.held_out().captions
    stats = FeatureStats(
        100, np.zeros(2), np.eye(2), "x", "", "", "held out",
        features=np.zeros((100, 2), np.float32), captions=captions,
    )  # fmt: skip
    inputs = MetricInputs.of(stats, None)
    generation = Generation(SHORT, reference_captions=inputs.captions)
    told = Generation(SHORT, conditions=captioned_digits.held_out())
    model = load(file)
    assert generation.captions(model, 5) == told.captions(model, 5)
    pair = (g.conditioning(model, range(5)) for g in (generation, told))
    assert all(a.equal(b) for a, b in zip(*(c.values.values() for c in pair), strict=True))
    plain = load(save_text_model(tmp_path / "plain.safetensors", encoder, label_dim=10, text=False))
    assert generation.captions(plain, 5) is None and generation.num_classes(plain) == 10


def test_metrics_refuse_to_tell_a_model_nothing(file):
    with pytest.raises(ValueError, match="told text, its images need captions; give --conditions"):
        Generation(SHORT).generator(load(file), range(4))


def test_held_out_loss_is_that_of_images_told_their_captions(file, encoder):
    model, dataset = load(file), captioned_digits.held_out()
    metric = HeldOutLoss(dataset, levels=(0.5,))
    _, rows = metric.rows_of(model, Generation(SHORT))
    told = told_by(dataset, encoder)
    expected = DenoisingRows(model.net, model.encoder, told, (0.5,))(range(20))[0]
    torch.testing.assert_close(rows(range(20))[0], expected)
    untold = dataclasses.replace(dataset, captions=dataset.captions.rows([9] * 100))
    _, rows = HeldOutLoss(untold, levels=(0.5,)).rows_of(model, Generation(SHORT))
    assert not rows(range(20))[0].allclose(expected)


def test_magnitudes_are_measured_on_captioned_images(file):
    outputs = []
    for words in (("--data", "text.captioned_digits:digits"), ("--data", "digits")):
        result = CliRunner().invoke(edm2lite, ["magnitudes", file, "--all", "--num", "8", *words])
        assert result.exit_code == 0, result.output
        outputs.append(result.output)
    assert "text_attn" in outputs[0] and outputs[0] != outputs[1]


def test_an_exported_model_keeps_its_text_encoder_and_says_so(file, encoder, tmp_path):
    folder = save_pretrained(file, tmp_path / "model", license="apache-2.0")
    assert from_pretrained(folder).text_encoder == encoder
    card = (folder / "README.md").read_text()
    assert f"digest `{encoder.digest}`, at most 6 tokens" in card
    assert 'edm2lite generate FOLDER --prompt "..." --guidance 2 --out images' in card


def test_a_text_encoder_of_other_sizes_than_the_network_is_refused_in_one_line(file, tmp_path):
    model = load(file)
    encoder, one = model.text_encoder, (1.0,)
    changes = {"num_tokens": 7}, {"mean": one, "std": one}, {"num_tokens": 10**12}
    for change in changes:
        metadata = {**model.metadata}
        metadata["text_encoder"] = json.dumps({**json.loads(encoder.to_json()), **change})
        path = model.net.save(tmp_path / "model.safetensors", metadata)
        with pytest.raises(ValueError, match=r"must give what the network takes|must lie between"):
            load(path)
    with pytest.raises(ValueError, match="must be of its 8 and 8 channels, got 1 and 8"):
        dataclasses.replace(encoder, mean=one, std=one).encode(["cat"])


def test_a_file_with_an_unknown_text_encoder_is_refused_in_one_line(file, encoder, tmp_path):
    model = load(file)
    for text in ("{", '{"kind": "torch.hub:load"}', '{"kind": "static", "std": [0], "mean": [0]}'):
        metadata = {**model.metadata, "text_encoder": text}
        path = model.net.save(tmp_path / "model.safetensors", metadata)
        with pytest.raises(ValueError, match="the text encoder of .* must be one this") as caught:
            load(path)
        assert "\n" not in str(caught.value)
