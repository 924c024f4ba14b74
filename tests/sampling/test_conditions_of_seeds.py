"""Conditions from values, data sets and seeds; networks that take condition images and vectors."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sampling.generating import fail, files, noise_of, raw, save_net, solved_by_hand, succeed

from edm2lite.dataset import open_dataset
from edm2lite.models.loading import load
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.conditions import ClassLabel
from edm2lite.sampling import Sampling, generate
from edm2lite.sampling.conditions import conditions_of_seeds
from edm2lite.sampling.levels import karras_sigmas

SEEDS = [0, 1, 2, 3, 4]


PIXELS = np.random.default_rng(1).integers(0, 256, (3, 8, 8), dtype=np.uint8)
VALUES = torch.from_numpy((PIXELS[:, None].astype(np.float32) - 127.5) / 63.75)  # as a network sees


def save_conditions(folder, pixels):
    (folder / "beside").mkdir(parents=True, exist_ok=True)
    for i in range(3):
        Image.fromarray(pixels[i]).save(folder / "beside" / f"{i}.png")


@pytest.fixture
def paired(tmp_path):
    """A folder of three images, each with a condition image and a class: 4, 5, 6 of 10."""
    folder = tmp_path / "paired"
    save_conditions(folder, PIXELS)
    for i in range(3):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / f"{i}.png")
    table = {
        "labels": [[f"{i}.png", 4 + i] for i in range(3)],
        "label_dim": 10,
        "conditions": {"image": [[f"{i}.png", f"beside/{i}.png"] for i in range(3)]},
    }
    (folder / "dataset.json").write_text(json.dumps(table))
    return folder


@pytest.fixture
def by_image(tmp_path):
    """A model file whose network takes a condition image of one channel, and no class."""
    return save_net(tmp_path / "net.safetensors", label_dim=0, cond_channels=1)


def expected(model, values):
    """The images of SEEDS by hand; image s is told ``values[s mod 3]``."""
    told = {"image": values[[0, 1, 2, 0, 1]]}
    return solved_by_hand(
        lambda x, sigma, step: model.net(x, sigma, told), noise_of(SEEDS), karras_sigmas(3).tolist()
    )


def test_images_follow_their_condition_images(by_image, paired):
    model = raw(by_image)
    common = {"sampling": Sampling(num_steps=3), "device": "cpu"}
    got = generate(model, SEEDS, conditioning=open_dataset(paired), **common)
    torch.testing.assert_close(got, expected(model, VALUES), rtol=1e-3, atol=1e-4)
    told = {"image": VALUES[[0, 1, 2, 0, 1]]}
    assert torch.equal(generate(model, SEEDS, conditioning=told, **common), got)
    other = expected(model, -VALUES)
    assert (got - other).abs().mean() > 0.01, "the test would not see a condition that is ignored"


def test_the_command_takes_conditions_from_a_data_set(by_image, paired, tmp_path):
    options = ("--seeds", "0-4", "--steps", 3, "--conditions", paired, "--out", tmp_path / "a")
    succeed(by_image, *options)
    encoder = load(by_image).encoder
    wanted = encoder.decode(expected(load(by_image), VALUES))
    for seed in SEEDS:
        with Image.open(tmp_path / "a" / "000000" / f"{seed:06d}.png") as image:
            difference = np.asarray(image).astype(int) - wanted[seed, 0].numpy()
        assert abs(difference).max() <= 1  # rounding at the border of two values


def test_a_folder_keeps_to_the_conditions_it_was_made_with(by_image, paired, tmp_path):
    out = tmp_path / "a"
    common = (by_image, "--steps", 2, "--conditions", paired, "--out", out)
    succeed(*common, "--seeds", "0-2")
    before = files(out)
    succeed(*common, "--seeds", "0-4")
    table = json.loads((out / "dataset.json").read_text())
    assert table["labels"] is None and len(table["condition_digests"]) == 5
    digests = dict(table["condition_digests"])
    assert digests["000000/000000.png"] == digests["000000/000003.png"]
    assert digests["000000/000000.png"] != digests["000000/000001.png"]
    assert {n: b for n, b in files(out).items() if n in before and n != "dataset.json"} == {
        n: b for n, b in before.items() if n != "dataset.json"
    }
    save_conditions(paired, PIXELS ^ 1)
    assert "holds seed 0 made with another condition" in fail(*common, "--seeds", "0-4")


def test_a_condition_that_nobody_gives_is_an_error_of_one_line(by_image, tmp_path):
    line = fail(by_image, "--out", tmp_path / "a")
    assert "image must be given" in line and "condition image of 1 channels" in line
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match="take conditions from a data set"):
        generate(by_image, [0])


def test_a_data_set_that_has_nothing_to_tell_is_refused(by_image, names, tmp_path):
    out = ("--out", tmp_path / "a")
    line = fail(by_image, "--conditions", "digits", *out)
    assert "digits must have what" in line and "it has 10 classes" in line
    seven = save_net(tmp_path / "seven.safetensors", label_dim=7)
    assert "(7 classes), it has 10 classes" in fail(seven, "--conditions", "digits", *out)
    assert "no data set at" in fail(by_image, "--conditions", tmp_path / "none", *out)


def test_classes_come_from_the_data_set_unless_they_are_named(names, tmp_path):
    digits = open_dataset("digits")
    model = load(names[0])
    seeds = [0, 1, 1796, 1797, 1799]  # there are 1797
    told = conditions_of_seeds(model, seeds, dataset=digits)
    assert told["label"].tolist() == [int(digits.labels[i]) for i in (0, 1, 1796, 0, 2)]
    succeed(names[0], "--conditions", "digits", "--seeds", "0-4", "--steps", 1,
            "--out", tmp_path / "a")  # fmt: skip
    assert open_dataset(tmp_path / "a").labels.tolist() == digits.labels[:5].tolist()


def test_a_class_that_is_named_goes_before_that_of_the_data_set(tmp_path, paired):
    model = load(save_net(tmp_path / "net.safetensors", cond_channels=1))
    told = conditions_of_seeds(model, [1, 2], dataset=open_dataset(paired))
    assert told["label"].tolist() == [5, 6]
    told = conditions_of_seeds(model, [1, 2], dataset=open_dataset(paired), classes=9)
    assert told["label"].tolist() == [9, 9]
    assert torch.equal(told["image"], VALUES[1:])
    values = Conditioning({"image": torch.zeros(2, 1, 8, 8)})
    told = conditions_of_seeds(model, [1, 2], values=values)
    assert told["label"].tolist() == ClassLabel(10).drawn([1, 2]).tolist()


def test_classes_are_one_for_all_in_turn_or_one_per_seed(names, by_image):
    model = load(names[0])
    for classes, labels in ((3, [3, 3, 3]), ("all", [8, 9, 0]), ([5, 0, 2], [5, 0, 2])):
        told = conditions_of_seeds(model, [8, 9, 10], classes=classes)
        assert told["label"].tolist() == labels
    with pytest.raises(ValueError, match="one per seed, or fewer .*, got 4 for 3 seeds"):
        conditions_of_seeds(model, [8, 9, 10], classes=[1, 2, 3, 4])
    with pytest.raises(ValueError, match="takes a condition image of 1 channels"):
        conditions_of_seeds(load(by_image), [8], classes=1)


def test_generate_writes_what_it_returns(names, tmp_path):
    common = {"classes": "all", "sampling": Sampling(num_steps=2)}
    heard = []
    returned = generate(names[0], range(70), **common, progress=lambda *n: heard.append(n))
    assert returned.dtype == torch.uint8 and heard[-1] == (70, 70) and len(heard) == 2
    assert generate(names[0], range(70), **common, out=tmp_path / "a") == tmp_path / "a"
    succeed(names[0], "--class", "all", "--steps", 2, "--seeds", "0-69", "--out", tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    stored = open_dataset(tmp_path / "a")
    assert np.array_equal(stored.images(range(70)), returned.numpy())
    assert generate(names[0], [], **common).shape == (0, 1, 8, 8)


def test_a_guide_may_be_named(names):
    sampling = Sampling(num_steps=2, guidance=2.0)
    named = generate(names[0], [3], sampling=sampling, guide=names[1])
    assert torch.equal(named, generate(names[0], [3], sampling=sampling, guide=load(names[1])))
    plain = generate(names[0], [3], sampling=Sampling(num_steps=2))
    assert not torch.equal(named, plain)
