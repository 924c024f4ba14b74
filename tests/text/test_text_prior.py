"""DreamBooth of a model that is told words: the prior is what the model makes of prompts."""

import json

import pytest
import torch
from text.text_configs import text_config

from edm2lite import load
from edm2lite.dataset import open_dataset
from edm2lite.training import Trainer

PROMPTS = ["a one", "a two"]


def trainer_of(table, text_run, out, prior):
    config = text_config(
        table, f"init={text_run}", "tune.kind=lora", "data.label_dropout=0",
        f"prior={json.dumps(prior)}",
    )  # fmt: skip
    return Trainer(config, out, torch.device("cpu"))


def test_images_of_prompts_are_told_their_prompts(table, text_run, tmp_path):
    prior = {"generate": 5, "prompts": PROMPTS, "steps": 1}
    trainer = trainer_of(table, text_run, tmp_path / "out", prior)
    (batch,) = trainer.batches.batch(0)
    trainer.close()
    told = load(text_run).text_encoder.encode(PROMPTS)
    made = open_dataset(tmp_path / "out" / "prior.zip")
    numbers = {made.read(i).tobytes(): i for i in range(5)}
    assert [made.captions.text(i) for i in range(5)] == [PROMPTS[i % 2] for i in range(5)]
    odd = [i for i, position in enumerate(batch.indices) if position % 2]
    assert len(odd) == 16
    for i in odd:
        prompt = numbers[batch.images[i].numpy().tobytes()] % 2
        for name in ("pooled", "tokens"):
            assert batch.conditioning[name][i].equal(told[name][prompt])


def test_prompts_are_needed(table, text_run, tmp_path):
    with pytest.raises(ValueError, match=r"prior.prompts must be given, .* is told text"):
        trainer_of(table, text_run, tmp_path / "out", {"generate": 5})
    assert not (tmp_path / "out").exists()
