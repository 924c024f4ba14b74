"""Text encoders: what transformers and a plain look-up give, the same bits in any company."""

import dataclasses
import importlib.metadata
import json
import shutil
import socket

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from text.tiny_encoders import NUM_TOKENS, WORDS, save_clip

from edm2lite.text import StaticTextEncoder, TransformersTextEncoder, named_text_encoder
from edm2lite.text.named import text_encoder_from_json
from edm2lite.text.place import MOVED

pytest.importorskip("transformers", reason="pip install 'edm2lite[test]'")

KINDS = ["clip with projection", "clip", "whole clip", "t5", "bert"]
HOSTILE = ["a" * 10_000, "\0", "مرحبا بالعالم", "👩‍🚀 in space", "half \ud800 of a pair", "\u200b"]


def raw(encoder):
    """The encoder with statistics that change nothing."""
    states = encoder.load().states("cat")
    widths = len(states.pooled), states.tokens.shape[1]
    return dataclasses.replace(
        encoder, digest=encoder.load().digest,
        mean=(0.0,) * widths[1], std=(1.0,) * widths[1],
        pooled_mean=(0.0,) * widths[0], pooled_std=(1.0,) * widths[0],
    )  # fmt: skip


def by_transformers(kind, folder, text):
    """Tokens and pooled vector as transformers gives them for a padded batch of two texts."""
    import transformers

    cls = {
        "clip with projection": transformers.CLIPTextModelWithProjection,
        "clip": transformers.CLIPTextModel,
        "whole clip": transformers.CLIPModel,
        "t5": transformers.T5EncoderModel,
        "bert": transformers.BertModel,
    }[kind]
    model = cls.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    options = {"truncation": True, "max_length": NUM_TOKENS, "padding": "max_length"}
    inputs = tokenizer([text, "cat"], return_tensors="pt", **options)
    mask = inputs["attention_mask"]
    with torch.no_grad():
        if kind == "whole clip":
            projected = model.get_text_features(**inputs).pooler_output
            output = model.text_model(input_ids=inputs["input_ids"], attention_mask=mask)
        else:
            output = model(**inputs)
            projected = getattr(output, "text_embeds", None)
    hidden = output.last_hidden_state
    pooled = output.pooler_output if kind == "clip" else projected
    if pooled is None:
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return hidden[0, : int(mask[0].sum())], pooled[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["red heart", "green apple " * 20])
def test_states_are_those_of_transformers(encoder_folders, kind, text):
    folder = encoder_folders[kind]
    told = raw(TransformersTextEncoder(source=str(folder), num_tokens=NUM_TOKENS)).encode([text])
    tokens, pooled = by_transformers(kind, folder, text)
    # float32 with and without padding, through two layers
    torch.testing.assert_close(told["tokens"][0, : len(tokens)], tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(told["pooled"][0], pooled, rtol=1e-4, atol=1e-5)
    assert not told["tokens"][0, len(tokens) :].any()


def test_static_states_are_rows_of_the_table():
    wheel = importlib.metadata.distribution("wordllama").locate_file("wordllama")
    table = load_file(f"{wheel}/weights/l2_supercat_256.safetensors")["embedding.weight"].float()
    vocabulary = json.loads(
        (wheel / "tokenizers/l2_supercat_tokenizer_config.json").read_text(encoding="utf-8")
    )["model"]["vocab"]
    told = raw(StaticTextEncoder(num_tokens=4)).encode(["red heart"])
    rows = table[[vocabulary["▁red"], vocabulary["▁heart"]]]
    assert told["tokens"][0].equal(torch.cat([rows, torch.zeros(2, 256)]))
    torch.testing.assert_close(told["pooled"][0], rows.mean(0))


@pytest.mark.parametrize("name", ["static", "clip", "t5"])
def test_a_text_is_the_same_bits_in_any_company(encoder_folders, name, monkeypatch):
    source = {} if name == "static" else {"source": str(encoder_folders[name])}
    cls = StaticTextEncoder if name == "static" else TransformersTextEncoder
    short = cls(num_tokens=8, **source).measured(WORDS)
    alone = short.encode(["blue car"])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    together = short.encode([*WORDS, *HOSTILE, "", "blue car"]).rows([-1])
    longer = dataclasses.replace(short, num_tokens=16).encode(["cat", "blue car"]).rows([-1])
    for name in ("pooled", "tokens"):
        assert alone[name].equal(together[name])
    assert longer["tokens"][:, :8].equal(alone["tokens"]) and not longer["tokens"][:, 8:].any()


def test_statistics_are_those_of_distinct_captions(clip):
    encoder = TransformersTextEncoder(source=str(clip), num_tokens=NUM_TOKENS)
    measured = encoder.measured([*WORDS, "cat", "cat", ""])
    states = [encoder.load().states(text) for text in WORDS]
    tokens = torch.cat([state.tokens for state in states]).double().numpy()
    pooled = torch.stack([state.pooled for state in states]).double().numpy()
    # written with six digits
    np.testing.assert_allclose(measured.mean, tokens.mean(0), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(measured.std, tokens.std(0), rtol=1e-5)
    np.testing.assert_allclose(measured.pooled_mean, pooled.mean(0), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(measured.pooled_std, pooled.std(0), rtol=1e-5)
    told = measured.encode(WORDS)
    real = told["tokens"][(told["tokens"] != 0).any(-1)]
    np.testing.assert_allclose(real.std(0, correction=0), 1, rtol=1e-4)


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_text_is_not_told(clip, text):
    encoder = TransformersTextEncoder(source=str(clip), num_tokens=NUM_TOKENS).measured(WORDS)
    told = encoder.encode([text, "cat"])
    assert not told["tokens"][0].any() and not told["pooled"][0].any()
    assert told["tokens"][1].any()


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_captions_are_encoded(clip, text):
    for encoder in (StaticTextEncoder(num_tokens=8), named_text_encoder(f"transformers:{clip}", 8)):
        told = encoder.measured([*WORDS, text]).encode([text])
        assert told["tokens"].isfinite().all() and told["tokens"].shape[1] == 8


def test_a_description_travels_as_json(clip):
    encoder = TransformersTextEncoder(source=str(clip), num_tokens=8).measured(WORDS)
    assert text_encoder_from_json(encoder.to_json()) == encoder
    assert [c.describe() for c in encoder.conditions] == [
        "pooled, a vector of 12 numbers", "8 tokens of 16 numbers",
    ]  # fmt: skip


def test_other_weights_and_other_words_are_refused(clip, tmp_path):
    encoder = named_text_encoder(f"transformers:{clip}", NUM_TOKENS).measured(WORDS)
    weights, words = (shutil.copytree(clip, tmp_path / name) for name in ("weights", "words"))
    tensors = load_file(weights / "model.safetensors")
    tensors["text_projection.weight"][0, 0] += 1e-3
    save_file(tensors, weights / "model.safetensors", {"format": "pt"})
    content = json.loads((words / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["cat"], vocabulary["blue"] = vocabulary["blue"], vocabulary["cat"]
    (words / "tokenizer.json").write_text(json.dumps(content))
    for other in (weights, words):
        with pytest.raises(ValueError, match="must be the one of digest"):
            dataclasses.replace(encoder, source=str(other)).encode(["cat"])


def test_a_folder_that_moved_is_found_by_a_variable(clip, tmp_path, monkeypatch):
    encoder = named_text_encoder(f"transformers:{clip}", NUM_TOKENS).measured(WORDS)
    gone = dataclasses.replace(encoder, source="/no/such/folder")
    with pytest.raises(ValueError, match=f"not there; set {MOVED}"):
        gone.encode(["cat"])
    monkeypatch.setenv(MOVED, str(clip))
    assert gone.encode(["cat"])["tokens"].equal(encoder.encode(["cat"])["tokens"])


def folder_of_another_kind(kind, place, clip):
    if kind == "nothing":
        place.mkdir()
        return place
    folder = shutil.copytree(clip, place)
    if kind == "an autoencoder":
        (folder / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    elif kind == "a pickle":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    elif kind == "no tokenizer":
        for path in folder.glob("tokenizer*"):
            path.unlink()
    elif kind == "weights missing":
        tensors = load_file(folder / "model.safetensors")
        tensors.pop("text_projection.weight")
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    elif kind == "words damaged":
        (folder / "tokenizer.json").write_text('{"model": 3}')
    elif kind == "cut short":
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[:1000])
    elif kind == "code":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {
            "model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"},
        }))  # fmt: skip
        (folder / "mine.py").write_text("raise SystemExit('executed')")
    return folder


@pytest.mark.parametrize(
    "kind",
    [
        "an autoencoder",
        "nothing",
        "a pickle",
        "no tokenizer",
        "weights missing",
        "cut short",
        "code",
    ],
)
def test_folders_of_another_kind_are_refused_in_one_line(kind, clip, tmp_path):
    folder = folder_of_another_kind(kind, tmp_path / "other", clip)
    with pytest.raises(ValueError, match=r"must be a folder or Hub name of CLIP, T5") as caught:
        TransformersTextEncoder(source=str(folder)).load()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_too_many_tokens_for_the_positions_are_refused(clip):
    with pytest.raises(ValueError, match=r"text.num_tokens must be at most 16 .* got 17"):
        TransformersTextEncoder(source=str(clip), num_tokens=17).load()


@pytest.mark.parametrize("tensors", [{}, {"a": (3, 4), "b": (3, 4)}, {"a": (400,)}, {"a": (3, 4)}])
def test_tables_of_another_kind_are_refused_in_one_line(tensors, clip, tmp_path):
    save_file({n: torch.zeros(shape) for n, shape in tensors.items()}, tmp_path / "t.safetensors")
    encoder = StaticTextEncoder(source=str(tmp_path))
    with pytest.raises(ValueError, match="must have a tokenizer.json beside it"):
        encoder.load()
    shutil.copy(clip / "tokenizer.json", tmp_path)
    with pytest.raises(ValueError, match="must hold one table of embeddings with a row for each"):
        encoder.load()


def test_a_table_of_another_tokenizer_is_used(clip, tmp_path):
    size = len(json.loads((clip / "tokenizer.json").read_text())["model"]["vocab"])
    table = torch.randn(size, 5)
    save_file({"embeddings": table}, tmp_path / "table.safetensors")
    shutil.copy(clip / "tokenizer.json", tmp_path)
    for source in (tmp_path, tmp_path / "table.safetensors"):
        states = StaticTextEncoder(source=str(source)).load().states("cat")
        ids = json.loads((clip / "tokenizer.json").read_text())["model"]["vocab"]
        assert states.tokens.equal(table[[ids["cat"]]])


def test_captions_that_do_not_differ_have_no_statistics():
    for texts, count in ((["cat", "cat"], "one"), ([""], "none")):
        with pytest.raises(ValueError, match=f"captions that differ, got {count}"):
            StaticTextEncoder().measured(texts)


def test_a_folder_is_loaded_without_a_connection(clip, t5, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was attempted")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    copy = save_clip(tmp_path / "copy")  # not loaded before
    for folder in (copy, t5):
        named_text_encoder(f"transformers:{folder}", 8).measured(WORDS)
    absent = named_text_encoder("transformers:nobody/has-this-one", 8)
    with pytest.raises(ValueError, match=r"cannot have it downloaded; set EDM2LITE_TEXT_ENCODER"):
        absent.encode(["cat"])
    monkeypatch.undo()
