"""Stores of encoded captions: the bits of the encoder, whatever happens on the way."""

import json
import shutil

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file
from text import captioned_digits
from text.tiny_encoders import NUM_TOKENS, WORDS

from edm2lite.text import CaptionStore, TransformersTextEncoder, encode_captions, encoding
from edm2lite.text.model import TextModel, text_digest
from edm2lite.tools.edm2lite import main as edm2lite

TEXTS = [f"{word} {i}" for word in WORDS for i in range(5)]


def encoder_of(folder):
    return TransformersTextEncoder(source=str(folder), num_tokens=NUM_TOKENS)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(encoding, "SHARD_TEXTS", 10)


@pytest.fixture(scope="module")
def store(clip, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "SHARD_TEXTS", 10)
        folder = tmp_path_factory.mktemp("stores") / "store"
        return encode_captions(TEXTS, folder, encoder_of(clip))


def test_states_are_those_of_the_encoder_to_the_last_bit(store, clip):
    assert len(store) == len(TEXTS) and len(contents(store.path)) == 4
    assert store.encoder == encoder_of(clip).measured(TEXTS)
    model = store.encoder.opened()
    for text in TEXTS:
        for found, expected in zip(store.states(text), model.states(text), strict=True):
            assert found.equal(expected)


def test_shards_are_as_the_module_says(store):
    tensors = load_file(store.path / "captions-00000.safetensors")
    first = sorted(TEXTS, key=text_digest)[:10]
    assert tensors["digests"].tolist() == [text_digest(text) for text in first]
    begin, end = 0, int(tensors["ends"][0])
    assert tensors["tokens"][begin:end].equal(store.states(first[0]).tokens)
    assert tensors["pooled"].shape == (10, 12)


def test_an_interrupted_encoding_continues_to_the_same_bytes(store, clip, tmp_path, monkeypatch):
    dest, number = tmp_path / "store", 0

    def counted(self, text, plain=TextModel._checked):
        nonlocal number
        number += 1
        if number == 15:
            raise KeyboardInterrupt
        return plain(self, text)

    monkeypatch.setattr(TextModel, "_checked", counted)
    with pytest.raises(KeyboardInterrupt):
        encode_captions(TEXTS, dest, encoder_of(clip))
    assert len(contents(dest)) == 1
    with pytest.raises(FileNotFoundError, match="yet; run the same command again"):
        CaptionStore(dest)
    number, done = 15, []
    encode_captions(TEXTS, dest, encoder_of(clip), progress=lambda *counts: done.append(counts))
    assert done == [(i + 1, 15) for i in range(15)]  # ten were there
    assert contents(dest) == contents(store.path)


def test_a_damaged_shard_is_encoded_again(store, clip, tmp_path, caplog):
    dest = shutil.copytree(store.path, tmp_path / "store")
    path = dest / "captions-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    encode_captions(TEXTS, dest, encoder_of(clip))
    assert "its captions are encoded again" in caplog.text
    assert contents(dest) == contents(store.path)


def test_other_captions_another_encoder_and_other_files_are_refused(store, clip, t5, tmp_path):
    before = contents(store.path)
    for texts, folder in (([*TEXTS, "more"], clip), (TEXTS, t5)):
        with pytest.raises(ValueError, match="of other captions or another encoder; give another"):
            encode_captions(texts, store.path, encoder_of(folder))
    assert contents(store.path) == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="must be free or hold the beginning .* has notes.txt"):
        encode_captions(TEXTS, tmp_path, encoder_of(clip))


def test_a_caption_that_is_not_there_is_named(store):
    with pytest.raises(ValueError, match="it has none 'a caption that nobody wrote'; encode"):
        store.states("a  caption that\nnobody wrote")
    assert store.missing([*TEXTS, "", "z", "y", "z"]) == sorted("yz", key=text_digest)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "edm2lite.captions/9"}, {"shards": []}, {"shards": [1]}, {"encoder": {}},
        {"encoder": {"kind": "torch.hub:load"}}, {"encoder": {"kind": "static"}},
    ],
)  # fmt: skip
def test_a_damaged_index_is_refused_in_one_line(store, change, tmp_path):
    dest = shutil.copytree(store.path, tmp_path / "store")
    content = json.loads((dest / "captions.json").read_text())
    (dest / "captions.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(ValueError, match="must be the index of a store of captions") as caught:
        CaptionStore(dest)
    assert "\n" not in str(caught.value)


def test_shards_of_two_stores_are_not_mixed(store, clip, tmp_path):
    other = encode_captions([text.upper() for text in TEXTS], tmp_path / "b", encoder_of(clip))
    name = "captions-00000.safetensors"
    shutil.copy(store.path / name, other.path / name)
    with pytest.raises(ValueError, match="belongs to another store"):
        CaptionStore(other.path)


def test_the_command_encodes_the_captions_of_a_data_set(clip, tmp_path):
    def run(*words):
        return CliRunner().invoke(edm2lite, ["dataset", "encode-captions", *map(str, words)])

    out = tmp_path / "store"
    words = ["text.captioned_digits:digits", "--encoder", f"transformers:{clip}"]
    words += ["--tokens", 16, "--out", out]
    result = run(*words)
    assert result.exit_code == 0, result.output
    line = f"20 captions in {out}: pooled, a vector of 12 numbers, 16 tokens of 16 numbers"
    assert result.stdout.strip() == line
    texts = {text for texts in captioned_digits.digits().captions.texts for text in texts}
    assert not CaptionStore(out).missing(texts)
    for words, message in (
        (["digits", "--encoder", "static"], "digits must have captions to be encoded"),
        (["digits", "--encoder", "clip"], "text encoder must be one of static, transformers"),
        (["digits", "--encoder", "transformers"], "text.source must be the folder or Hub name"),
    ):
        result = run(*words, "--out", tmp_path / "other")
        assert result.exit_code == 1 and result.output.startswith("Error: ")
        assert message in result.output and result.output.count("\n") == 1
