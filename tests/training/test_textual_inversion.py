"""Learned words: what they tell, how they are trained, their files."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from text.tiny_encoders import NUM_TOKENS, WORDS
from training_runs import digests

from edm2lite import load
from edm2lite.interop.adapter_import import import_adapter
from edm2lite.interop.textual_inversion import write_learned_word
from edm2lite.models.adapters import Adapter, save_adapter
from edm2lite.models.loading import load_adapter, with_adapters
from edm2lite.network.conditioning import Conditioning
from edm2lite.sampling import Sampling, generate
from edm2lite.tensorfile import load_tensors
from edm2lite.text import named_text_encoder
from edm2lite.text.named import text_encoder_from_json
from edm2lite.training.config import load_config
from edm2lite.training.dry_run import report
from edm2lite.training.trainer import Trainer

pytest.importorskip("transformers", reason="pip install 'edm2lite[test]'")

KINDS = ["static", "clip with projection", "clip", "t5", "bert"]
TEXT = """
init: {init}
data: {{source: digits, classes: [9], per_class: 20, label_dropout: 0.25}}
loss: {{P_mean: -0.4, P_std: 1.2}}
optim: {{ref_lr: 0.05, rampup_nimg: 0}}
tune: {{kind: textual_inversion, word: <9>, start: cat, vectors: 2, texts: ["a {{}}", "{{}}"]}}
batch_size: 4
microbatch: 4
total_nimg: 32
status_nimg: 16
snapshot_nimg: 8
checkpoint_nimg: 16
"""


@pytest.fixture
def encoder(request, table, encoder_folders):
    """An encoder of a kind, with statistics."""
    kind = request.param
    name = f"static:{table}" if kind == "static" else f"transformers:{encoder_folders[kind]}"
    return named_text_encoder(name, NUM_TOKENS).measured(WORDS)


def train(config, out, *changes):
    trainer = Trainer(load_config(str(config), changes), out, torch.device("cpu"))
    trainer.train()
    return trainer


@pytest.fixture
def config(text_run, tmp_path):
    path = tmp_path / "word.yaml"
    path.write_text(TEXT.format(init=text_run))
    return path


@pytest.mark.parametrize("encoder", KINDS, indirect=True)
def test_a_word_with_the_vectors_of_a_known_one_tells_the_same(encoder):
    taught = encoder.with_word("<x>", encoder.opened().input_rows("cat"))
    taught = text_encoder_from_json(taught.to_json())
    for text, same in (("a red <x>", "a red cat"), ("<x>", "cat"), ("a red", "a red")):
        told, expected = taught.encode([text]), encoder.encode([same])
        for name in ("pooled", "tokens"):
            assert torch.allclose(told[name], expected[name], atol=2e-6), (text, name)
    longer = taught.encode(["<x> " * 50])["tokens"]  # cut off like any other text
    assert longer.isfinite().all() and longer.shape == told["tokens"].shape


@pytest.mark.parametrize("encoder", KINDS[1:], indirect=True)
def test_a_learned_word_is_a_token_that_was_added_to_tokenizer_and_weights(encoder):
    import transformers

    classes = {"clip": transformers.CLIPTextModel, "t5": transformers.T5EncoderModel}
    classes["bert"] = transformers.BertModel
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder.source)
    (kind,) = [kind for kind in classes if kind in encoder.source.rpartition("/")[2]]
    model = classes[kind].from_pretrained(encoder.source).eval()
    vectors = torch.randn(2, model.get_input_embeddings().weight.shape[1])
    tokenizer.add_tokens(["<x>", "<y>"])
    with torch.no_grad():
        rows = model.get_input_embeddings().weight
        model.set_input_embeddings(torch.nn.Embedding.from_pretrained(torch.cat([rows, vectors])))
        text = "a red <x><y> on a table"
        expected = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    found = encoder.opened().states_with(text.replace("<y>", ""), {"<x>": vectors})
    assert torch.allclose(found.tokens, expected, atol=2e-6)


@pytest.mark.parametrize("encoder", KINDS, indirect=True)
def test_the_derivative_for_a_word_is_that_of_finite_differences(encoder):
    model = encoder.opened()
    start = model.input_rows("cat")
    rows = start.clone().requires_grad_()
    weights = torch.randn(model.states_with("a <x>", {"<x>": rows}).tokens.shape)
    (model.states_with("a <x>", {"<x>": rows}).tokens * weights).sum().backward()
    direction, step = torch.randn_like(start), 0.05 * start.square().mean().sqrt()
    ends = [
        (model.states_with("a <x>", {"<x>": start + s * step * direction}).tokens * weights).sum()
        for s in (1, -1)
    ]
    slope = (ends[0] - ends[1]) / (2 * step)  # of error step^2, and rounding over the step
    assert torch.allclose(slope, (rows.grad * direction).sum(), rtol=0.02, atol=0.02)


def test_a_run_trains_the_word_alone_and_continues_bit_for_bit(config, text_run, tmp_path):
    whole = train(config, tmp_path / "whole")
    stored = load(str(text_run)).net.state_dict()
    trained = whole.net.state_dict()
    assert {n for n, v in trained.items() if n not in stored or not v.equal(stored[n])} == {
        "word.vectors"
    }
    train(config, tmp_path / "parts", "total_nimg=16")
    train(config, tmp_path / "parts")
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")

    tensors, _ = load_tensors(tmp_path / "whole" / "last.safetensors")
    (vectors,) = tensors.values()
    start = load(str(text_run)).text_encoder.opened().input_rows("cat")
    scale = start.square().mean().sqrt()
    model = load(str(tmp_path / "whole"))
    expected = load(str(text_run)).text_encoder.with_word("<9>", vectors * scale.item())
    assert model.text_encoder == expected
    assert not torch.allclose(vectors[:1] * scale, start, rtol=0.01)
    average = load(f"{tmp_path / 'whole'}@sigma_rel=0.10")
    assert average.text_encoder.words == ("<9>", "<9>")
    options = {"prompts": ["a <9>"], "sampling": Sampling(num_steps=2)}
    images = generate(average, range(2), **options)
    assert not torch.equal(images, generate(load(str(text_run)), range(2), **options))


def test_the_cost_of_a_run_is_told_and_the_network_can_be_copied(config, tmp_path):
    told = report(load_config(str(config)), tmp_path / "run", 1)
    assert "textual_inversion" in told
    trainer = Trainer(load_config(str(config)), tmp_path / "run", torch.device("cpu"))
    (hook,) = trainer.net._forward_pre_hooks.values()
    (copied,) = copy.deepcopy(trainer.net)._forward_pre_hooks.values()
    assert copied._model is hook._model
    trainer.close()


def test_the_network_is_told_the_word_as_it_is(config, text_run, tmp_path):
    trainer = Trainer(load_config(str(config)), tmp_path / "run", torch.device("cpu"))
    try:
        seen = []
        trainer.net.backbone.register_forward_pre_hook(
            lambda _, args: seen.extend(a for a in args if isinstance(a, Conditioning))
        )
        with torch.no_grad():
            trainer.net.word.vectors.normal_(generator=torch.Generator().manual_seed(1))
        base = load(str(text_run)).text_encoder
        captions = ["a <9>", "", "<9>", "a cat"]
        given = base.encode(captions)
        trainer.net(torch.zeros(4, 1, 8, 8), torch.ones(4), given)
        taught = base.with_word("<9>", trainer.net.word().detach())
        expected = taught.encode(captions)
        for name in ("pooled", "tokens"):
            assert torch.allclose(seen[0][name], expected[name], atol=1e-6), name
        assert not torch.allclose(seen[0]["tokens"], given["tokens"], atol=0.1)
    finally:
        trainer.close()


def test_files_of_diffusers_are_read_and_written(text_run, tmp_path):
    base = load(str(text_run))
    vectors = torch.randn(2, base.text_encoder.opened().input_rows("a").shape[1])
    save_file({"<cat>": vectors}, tmp_path / "learned_embeds.safetensors")
    adapter = import_adapter(tmp_path / "learned_embeds.safetensors", base)
    ours = save_adapter(tmp_path / "cat.safetensors", adapter)
    model = with_adapters(base, [load_adapter(ours)])
    taught = base.text_encoder.with_word("<cat>", vectors)
    prompts = ["a <cat>", "cat"]
    told = model.text_encoder.encode(prompts)
    expected = taught.encode(prompts)
    assert all(told[name].equal(expected[name]) for name in ("pooled", "tokens"))
    assert model.identity != base.identity
    back = load_file(write_learned_word(tmp_path / "back.safetensors", load_adapter(ours)))
    assert list(back) == ["<cat>"] and back["<cat>"].equal(vectors)


MISTAKES = {
    "a word with a space": ({"word": "my cat", "scale": 1.0}, "without spaces"),
    "no scale": ({"word": "<cat>"}, "a scale above 0"),
    "a scale of 0": ({"word": "<cat>", "scale": 0.0}, "a scale above 0"),
    "no word": ({}, "a learned word must be"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_damaged_word_is_refused(mistake):
    text, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        Adapter("a", "textual_inversion", {"word.vectors": torch.ones(1, 8)}, text=text)


def test_a_word_of_another_encoder_is_refused_before_anything_is_written(
    run_dir, text_run, config, tmp_path
):
    path = tmp_path / "learned_embeds.safetensors"
    save_file({"<cat>": torch.ones(1, 768)}, path)
    with pytest.raises(ValueError, match="length of the text encoder .* 8, got 768"):
        import_adapter(path, load(str(text_run)))
    with pytest.raises(ValueError, match="a model that is told text"):
        import_adapter(path, load(str(run_dir)))
    word = Adapter(
        "a", "textual_inversion", {"word.vectors": torch.ones(1, 8)},
        text={"word": "<cat>", "scale": 1.0},
    )  # fmt: skip
    half = f"{save_adapter(tmp_path / 'cat.safetensors', word)}:0.5"
    with pytest.raises(ValueError, match="strength 0 or 1, got 0.5"):
        with_adapters(load(str(text_run)), [half])
    with pytest.raises(ValueError, match="<cat> is one already"):
        with_adapters(load(str(text_run)), [word, word])
    for change, message in (
        ('{"kind": "textual_inversion", "word": "a b", "start": "cat"}', "without spaces"),
        ('{"kind": "textual_inversion", "word": "<9>", "start": ""}', "no tokens"),
        ('{"kind": "textual_inversion", "word": "<9>", "start": "cat", "texts": ["x"]}', "texts"),
    ):
        with pytest.raises(ValueError, match=message):
            train(config, tmp_path / "run", f"tune={json.dumps(json.loads(change))}")
    assert not (tmp_path / "run").exists()
