"""Images of prompts: functions of seed and prompt alone, recorded, guided and drawn."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from sampling.generating import (
    Raw,
    fail,
    files,
    images,
    noise_of,
    on_two_ranks,
    run,
    solved_by_hand,
    succeed,
)
from text.text_models import save_text_model
from text.tiny_encoders import WORDS

import edm2lite
from edm2lite.dataset import open_dataset
from edm2lite.models.loading import load
from edm2lite.network.conditioning import Conditioning
from edm2lite.sampling.levels import karras_sigmas
from edm2lite.sampling.settings import Sampling
from edm2lite.text import named_text_encoder

SHORT = Sampling(num_steps=2)
GUIDED = Sampling(num_steps=2, guidance=2.0)
HOSTILE = ["", "x" * 10_000, "مرحبا", "👩‍🚀", "$5 to $7", "two\nlines"]


@pytest.fixture(scope="module")
def encoder(table):
    return named_text_encoder(f"static:{table}", 6).measured(WORDS)


@pytest.fixture(scope="module")
def file(encoder, tmp_path_factory):
    """File of a model that is told text."""
    return save_text_model(tmp_path_factory.mktemp("models") / "text.safetensors", encoder)


@pytest.fixture(scope="module")
def classes_too(encoder, tmp_path_factory):
    """File of a model that is told text and one of three classes."""
    place = tmp_path_factory.mktemp("models") / "both.safetensors"
    return save_text_model(place, encoder, label_dim=3)


def raw(file):
    return dataclasses.replace(load(file), encoder=Raw())


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("negative", ["", "blue car"])
def test_an_image_depends_on_seed_and_prompt_to_the_last_bit(file, negative):
    model = raw(file)
    options = {"sampling": GUIDED, "guide": "unconditional", "negative_prompt": negative}
    prompts = [WORDS[i % 5] for i in range(80)]
    together = images(model, range(80), prompts=prompts, **options)
    assert len(together.unique(dim=0)) == 80
    order = [79, 7, 3, 66, 0]
    chosen = [prompts[i] for i in order]
    assert images(model, order, prompts=chosen, **options).equal(together[order])
    assert images(model, [7], prompts=[prompts[7]], **options).equal(together[7:8])
    longer = dataclasses.replace(model.text_encoder, num_tokens=9)  # more padding
    padded = dataclasses.replace(model, text_encoder=longer)
    assert images(padded, order, prompts=chosen, **options).equal(together[order])


def test_processes_share_the_prompts(file, tmp_path):
    prompts = [word for text in WORDS for word in ("--prompt", text)]
    words = (file, *prompts, "--seeds", "0-69", "--steps", 2, "--guidance", 2)
    succeed(*words, "--out", tmp_path / "one.zip")
    said = on_two_ranks(*words, "--out", tmp_path / "two.zip")
    assert "70 images in" in said[0] and said[1] == ""
    assert (tmp_path / "two.zip").read_bytes() == (tmp_path / "one.zip").read_bytes()


def test_images_are_those_of_the_sampler_told_the_encoded_prompt(file):
    """By hand: the main denoiser is told one text, the guide another or nothing."""
    model, exact = raw(file), load(file).net.double()
    prompts, seeds = ["red heart", "cat"], [3, 4]
    sampling = Sampling(num_steps=3, guidance=1.7)
    sigmas = karras_sigmas(3).tolist()
    for negative in ("", "blue car"):
        main = model.text_encoder.encode(prompts)
        weak = model.text_encoder.encode([negative] * 2)

        def guided(x, sigma, step, main=main, weak=weak):
            with torch.no_grad():
                D_main, D_weak = (exact(x, torch.tensor(sigma), told) for told in (main, weak))
            return D_main + 0.7 * (D_main - D_weak)

        expected = solved_by_hand(guided, noise_of(seeds).double(), sigmas)
        found = images(
            model, seeds, prompts=prompts, sampling=sampling, guide="unconditional",
            negative_prompt=negative,
        )  # fmt: skip
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


def test_seeds_get_prompts_in_turn_and_default_to_one_each(file):
    model = load(file)
    one_each = edm2lite.generate(model, prompts=WORDS, sampling=SHORT)
    assert len(one_each) == 5
    again = edm2lite.generate(model, [3, 8, 11], prompts=WORDS, sampling=SHORT)
    assert again[0].equal(one_each[3])
    alone = edm2lite.generate(model, [11], prompts=[WORDS[1]], sampling=SHORT)
    assert alone.equal(again[2:])


def test_guidance_with_prompts_is_that_of_no_text(file):
    model = load(file)
    options = {"prompts": WORDS, "sampling": GUIDED}
    found = edm2lite.generate(model, **options)
    assert found.equal(edm2lite.generate(model, **options, guide="unconditional"))
    assert not found.equal(edm2lite.generate(model, prompts=WORDS, sampling=SHORT))
    assert not found.equal(edm2lite.generate(model, **options, negative_prompt="cat"))


def test_no_prompt_and_an_empty_one_tell_nothing(file):
    model = raw(file)
    expected = images(model, range(3), sampling=SHORT)
    assert images(model, range(3), sampling=SHORT, prompts=[""] * 3).equal(expected)
    told = Conditioning({"tokens": torch.zeros(3, 6, 8), "pooled": torch.zeros(3, 8)})
    assert images(model, range(3), conditioning=told, sampling=SHORT).equal(expected)


@pytest.mark.parametrize("prompt", HOSTILE)
def test_hostile_prompts_are_drawn(file, prompt, tmp_path):
    words = (file, "--prompt", prompt, "--prompt", "cat", "--steps", 2, "--guidance", 2)
    succeed(*words, "--grid", tmp_path / "grid.png", "--out", tmp_path / "images")
    assert pixels(tmp_path / "grid.png").shape[1] > 100
    assert open_dataset(tmp_path / "images").captions.texts[1] == ("cat",)


def test_prompts_that_no_file_can_hold_are_refused_in_one_line(file):
    for prompts in (["a\0b"], ["a\ud800b"], [3], "red heart", []):
        with pytest.raises(ValueError, match="prompt") as caught:
            edm2lite.generate(load(file), [0], prompts=prompts)
        assert "\n" not in str(caught.value)


def test_a_folder_records_prompts_and_refuses_others(file, tmp_path):
    words = (file, "--seeds", "0-3", "--steps", 2, "--out", tmp_path / "images")
    prompts = ("--prompt", "red heart", "--prompt", "cat")
    output = succeed(*words, *prompts)
    assert f"4 images in {tmp_path / 'images'}" in output
    before = files(tmp_path / "images")
    table = json.loads(before["dataset.json"])
    assert table["captions"][1] == ["000000/000001.png", ["cat"]]
    captions = open_dataset(tmp_path / "images").captions
    assert captions.texts == [("red heart",), ("cat",), ("red heart",), ("cat",)]
    succeed(*words, *prompts)
    assert files(tmp_path / "images") == before
    line = fail(*words, "--prompt", "red heart", "--prompt", "dog")
    assert "holds seed 1 of prompt 'cat', not 'dog'; choose another place" in line
    assert "of prompt 'red heart', not ''" in fail(*words)
    guided = (*words, *prompts, "--guidance", 2)
    line = fail(*guided, "--negative-prompt", "blue car")
    assert 'negative_prompt (default, now "blue car")' in line
    assert files(tmp_path / "images") == before
    # more seeds join those that are there
    succeed(*prompts, file, "--seeds", "4-5", "--steps", 2, "--out", tmp_path / "images")
    assert len(open_dataset(tmp_path / "images").captions.texts) == 6


def test_prompts_of_a_file_follow_those_of_the_command(file, tmp_path):
    (tmp_path / "prompts.txt").write_text("\ufeffcat\n\n  blue car \n", encoding="utf-8")
    out = tmp_path / "images"
    words = (file, "--prompt", "red heart", "--prompts", tmp_path / "prompts.txt", "--steps", 2)
    succeed(*words, "--out", out)
    assert open_dataset(out).captions.texts == [("red heart",), ("cat",), ("blue car",)]
    (tmp_path / "prompts.txt").write_bytes(b"\xff\xfe")
    assert "must be text in UTF-8" in fail(*words, "--out", tmp_path / "b")
    (tmp_path / "prompts.txt").write_text("\n")
    line = fail(file, "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "b")
    assert "must hold at least one prompt" in line


def test_a_grid_needs_no_folder(file, encoder, tmp_path):
    succeed(file, "--seeds", "0-8", "--steps", 2, "--grid", tmp_path / "plain.png")
    one = ("--prompt", "red heart", "--prompt", "cat", "--steps", 2)
    succeed(file, *one, "--grid", tmp_path / "one.png")
    other = save_text_model(tmp_path / "other.safetensors", encoder, seed=1)
    succeed(file, other, *one, "--grid", tmp_path / "two.png")
    sizes = [pixels(tmp_path / f"{name}.png").shape for name in ("plain", "one", "two")]
    assert len(set(sizes)) == 3 and sizes[2][0] > sizes[1][0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "one.png", "other.safetensors", "plain.png", "two.png",
    ]  # fmt: skip
    assert "give --out, or --grid" in fail(file, *one, code=2)


def test_the_grid_of_one_model_shows_the_images_of_the_folder(file, tmp_path):
    words = (file, "--prompt", "red heart", "--steps", 2)
    succeed(*words, "--out", tmp_path / "images", "--grid", tmp_path / "a.png")
    succeed(*words, "--grid", tmp_path / "b.png")
    a, b = (pixels(tmp_path / name) for name in ("a.png", "b.png"))
    assert (a == b).all() and a.std() > 0


def test_captions_of_a_data_set_are_prompts(classes_too, tmp_path):
    words = ("--seeds", "0-3", "--steps", 2)
    told = (classes_too, "--conditions", "text.captioned_digits:digits", *words)
    assert "must have what" in fail(*told, "--out", tmp_path / "a")  # ten classes are not three
    source = open_dataset("text.captioned_digits:digits")
    source = dataclasses.replace(source, table=None)
    model = load(classes_too)
    found = edm2lite.generate(model, range(4), conditioning=source, sampling=SHORT)
    prompts = [source.captions.text(i) for i in range(4)]
    assert found.equal(edm2lite.generate(model, prompts=prompts, sampling=SHORT))


def test_a_class_and_a_prompt_are_told_together(classes_too):
    model = load(classes_too)
    found = [edm2lite.generate(model, prompts=["cat"], classes=c, sampling=SHORT) for c in (0, 1)]
    assert not found[0].equal(found[1])
    assert not found[0].equal(edm2lite.generate(model, [0], classes=0, sampling=SHORT))


def test_a_weaker_model_of_the_same_encoder_guides(file, encoder, tmp_path):
    other = load(save_text_model(tmp_path / "weak.safetensors", encoder, seed=1))
    options = {"prompts": WORDS, "sampling": GUIDED}
    found = edm2lite.generate(load(file), guide=other, **options)
    assert not found.equal(edm2lite.generate(load(file), **options))
    shifted = dataclasses.replace(encoder, mean=tuple(m + 1 for m in encoder.mean))
    other = load(save_text_model(tmp_path / "shifted.safetensors", shifted, seed=1))
    with pytest.raises(ValueError, match="has another text encoder, or other statistics"):
        edm2lite.generate(load(file), guide=other, **options)


def test_what_cannot_be_is_refused_in_one_line(file, encoder, tmp_path):
    plain = save_text_model(tmp_path / "plain.safetensors", encoder, text=False)
    always = save_text_model(tmp_path / "always.safetensors", encoder, dropout="0.0")
    out = ("--steps", 2, "--out", tmp_path / "images")
    prompt, negative = ("--prompt", "cat"), ("--negative-prompt", "dog")
    assert "takes no prompts, it is told no text" in fail(plain, *prompt, *out)
    assert "is what the unconditional guide is told" in fail(file, *prompt, *negative, *out)
    assert "never seen an image without" in fail(always, *prompt, "--guidance", 2, *out)
    succeed(always, *prompt, *negative, "--guidance", 2, *out)  # it has been told texts
    assert run(file, "--guidance", 2, *out).exit_code == 2
    for seeds in (None, []):
        with pytest.raises(ValueError, match="at least one"):
            edm2lite.generate(load(file), seeds, prompts=None if seeds is None else [])


def test_an_encoder_that_is_gone_is_named_before_anything_is_generated(file, encoder, tmp_path):
    gone = dataclasses.replace(encoder, source="/no/such/table")
    model = save_text_model(tmp_path / "gone.safetensors", gone)
    assert len(images(load(model), [0], sampling=SHORT)) == 1  # without a word
    line = fail(model, "--prompt", "cat", "--out", tmp_path / "images")
    assert "must be at /no/such/table, which is not there; set EDM2LITE_TEXT_ENCODER" in line
    assert not (tmp_path / "images" / "settings.json").exists()
