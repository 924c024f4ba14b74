"""Training on captions: what a run records, resumes and draws, on the fly and from a store."""

import dataclasses
import itertools
import json

import pytest
import torch
from text import captioned_digits
from text.text_configs import NUM_TOKENS, text_config

from edm2lite.dataset import with_text
from edm2lite.ema import list_snapshots
from edm2lite.jsonlines import read_lines
from edm2lite.models.loading import load
from edm2lite.tensorfile import load_tensors, read_header
from edm2lite.text import StaticTextEncoder, encode_captions
from edm2lite.training import Trainer
from edm2lite.training.config import load_config
from edm2lite.training.data import BatchSource
from edm2lite.training.dry_run import report

HELD_OUT = "data.source=text.captioned_digits:held_out"
CPU = torch.device("cpu")


def all_texts():
    return list(itertools.chain(*captioned_digits.digits().captions.texts))


def digests(run):
    return {i.path.name: i.header.digest for i in list_snapshots(run)}


def measured(table):
    encoder = StaticTextEncoder(source=str(table), num_tokens=NUM_TOKENS)
    return encoder.measured(all_texts())


def test_the_encoder_travels_with_the_run_its_averages_and_its_last_weights(text_run, table):
    encoder = measured(table)
    assert load_config(str(text_run)).text == encoder
    for name in (text_run, f"{text_run}@sigma_rel=0.1"):
        model = load(name)
        assert model.text_encoder == encoder
        assert list(model.net.config.backbone.conditions) == list(encoder.conditions)
    metadata = read_header(text_run / "last.safetensors").metadata
    assert metadata["unlabeled"] == "179"  # every tenth image has no caption


def test_a_batch_is_told_one_caption_of_each_image(table):
    encoder, dataset = measured(table), captioned_digits.digits()
    config = text_config(table)
    batches = BatchSource(
        with_text(dataset, encoder), seed=0, batch_size=256, microbatch=256, data=config.data,
        names=("pooled", "tokens"),
    )  # fmt: skip
    (batch,) = batches.batch(0)
    batches.close()
    drawn = set()
    rows = zip(batch.conditioning["pooled"], batch.conditioning["tokens"], strict=True)
    for i, (pooled, tokens) in enumerate(rows):
        texts = ("", *dataset.captions.texts[batches.row(i)])
        same = [
            pooled.equal(told["pooled"][0]) and tokens.equal(told["tokens"][0])
            for told in (encoder.encode([text]) for text in texts)
        ]
        assert sum(same) == 1  # never the pooled vector of one and the tokens of another
        drawn.add(same.index(True))
    assert drawn == {0, 1, 2}


def test_a_store_gives_the_weights_of_captions_encoded_on_the_fly(text_run, table, tmp_path):
    encoder = StaticTextEncoder(source=str(table), num_tokens=NUM_TOKENS)
    store = encode_captions(all_texts(), tmp_path / "store", encoder)
    assert store.encoder == measured(table)
    config = text_config(None, f"data.captions={store.path}", "total_nimg=320")
    Trainer(config, tmp_path / "run", CPU).train()
    found = digests(tmp_path / "run")
    assert len(found) == 4 and found.items() <= digests(text_run).items()


def test_an_interrupted_run_continues_to_the_same_bits(text_run, table, tmp_path):
    for total in (320, 640):
        config = text_config(table, f"total_nimg={total}", "checkpoint_nimg=320")
        Trainer(config, tmp_path / "run", CPU).train()
    assert digests(tmp_path / "run") == digests(text_run)


def test_a_run_continues_with_the_statistics_that_it_has(text_run, table, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("captions were measured again")

    monkeypatch.setattr(StaticTextEncoder, "measured", refuse)
    assert "continued from nimg = 640" in report(text_config(table), text_run, 1)
    with pytest.raises(AssertionError, match="measured again"):
        report(text_config(table, num_tokens=3), text_run, 1)


def test_grids_and_held_out_loss_are_told_captions(table, tmp_path):
    held_out = json.dumps({"data": "text.captioned_digits:held_out", "every": 320, "images": 40})
    config = text_config(
        table, f"validation={held_out}", "total_nimg=320", "sample_nimg=320", "sample_count=4",
        "sample_steps=2",
    )  # fmt: skip
    trainer = Trainer(config, tmp_path / "run", CPU)
    told = []
    trainer.net.register_forward_pre_hook(lambda module, args: told.append(args[2]))
    trainer.train()
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) == 2
    stats, _ = read_lines(tmp_path / "run" / "stats.jsonl")
    assert 0 < stats[-1]["validation"]["raw"] < 3
    assert all(c["tokens"].any() and c["pooled"].any() for c in told)
    assert {len(c["tokens"]) for c in told} >= {4}


def test_a_dry_run_says_what_the_network_is_told(table, tmp_path):
    text = report(text_config(table), tmp_path / "run", 1)
    assert "10 classes and pooled, a vector of 8 numbers and 6 tokens of 8 numbers" in text
    assert len(text.splitlines()) < 150  # without the statistics
    assert not (tmp_path / "run").exists()


def test_the_file_of_a_run_has_the_statistics_side_by_side(text_run, table):
    text = (text_run / "config.yaml").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    assert len(lines) < 150
    wide = StaticTextEncoder(num_tokens=4).measured(["red heart", "blue car"])
    config = dataclasses.replace(text_config(table), text=wide)
    text = config.to_yaml()
    assert len(text.splitlines()) < 300 and max(map(len, text.splitlines())) < 100


@pytest.mark.parametrize(
    "change, message",
    [
        (("data.source=digits",), "digits must have captions for a network that is told text"),
        (("net.backbone.text=null",), "must be left out for a network that is told no text"),
        (("text=null",), r"must take what .* to tell it the captions of digits, set text.kind"),
        (("text.num_tokens=5",), r"got 6 tokens of 8 numbers"),
        (("data.captions={store}", "text.num_tokens=5"), "6 where text.num_tokens is 5"),
        (("data.captions={store}", "text=null", HELD_OUT), None),
        (("data.captions={few}", "text=null"), r"must hold the captions of digits, it lacks 18"),
        (("data.captions=nowhere",), "nowhere must hold encoded captions, it has no"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_in_one_line(change, message, table, tmp_path):
    encoder = StaticTextEncoder(source=str(table), num_tokens=NUM_TOKENS)
    stores = {"store": all_texts(), "few": ["a two", "a six"]}
    for name, texts in stores.items():
        if any(f"{{{name}}}" in c for c in change):
            encode_captions(texts, tmp_path / name, encoder)
    places = {name: tmp_path / name for name in stores}
    config = text_config(table, *(c.format(**places) for c in change))
    if message is None:
        report(config, tmp_path / "run", 1)
        return
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        report(config, tmp_path / "run", 1)
    assert "\n" not in str(caught.value)


def test_a_network_of_classes_and_words_takes_both(table, tmp_path):
    config = text_config(table, "net.backbone.label_dim=10", "total_nimg=160")
    Trainer(config, tmp_path / "run", CPU).train()
    tensors, _ = load_tensors(tmp_path / "run" / "last.safetensors")
    angles = [v for name, v in tensors.items() if name.endswith("text_attn.angles")]
    assert angles and all(v.any() for v in angles)  # 0 at the start: the text has been learned from
