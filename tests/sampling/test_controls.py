"""Condition images of a person's files: paired with seeds, and normalized as in training."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sampling.generating import fail, on_two_ranks, save_net, succeed
from tiny_run import tiny_config

import edm2lite
from edm2lite.dataset import Conversion, convert_images, open_collection, open_dataset
from edm2lite.models.loading import load
from edm2lite.sampling.settings import Sampling
from edm2lite.tensorfile import load_tensors, save_tensors
from edm2lite.training import Trainer

TWO = Sampling(num_steps=2)
STATED = {"image": {"mean": 40.0, "std": 80.0}}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """File of a model that is told a gray image, and how that was normalized in training."""
    path = tmp_path_factory.mktemp("models") / "told.safetensors"
    save_net(path, label_dim=0, cond_channels=1)
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors, {**metadata, "condition_normalization": json.dumps(STATED)})
    return str(path)


@pytest.fixture
def hints(tmp_path):
    """A folder of two outlines, and their pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    (tmp_path / "hints").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "hints" / f"{i}.png")
    return tmp_path / "hints", torch.from_numpy(pixels)[:, None]


def test_images_of_a_folder_are_told_one_after_the_other(told, hints, tmp_path):
    folder, pixels = hints
    words = (told, "--seeds", "0-69", "--steps", 2, "--control", folder)
    succeed(*words, "--out", tmp_path / "one.zip")
    found = torch.from_numpy(open_dataset(tmp_path / "one.zip").images(range(70)))
    values = (pixels[torch.arange(70) % 2].float() - 40) / 80
    model = load(told)
    by_hand = edm2lite.generate(model, range(70), conditioning={"image": values}, sampling=TWO)
    assert found.equal(by_hand)
    assert found.equal(edm2lite.generate(model, range(70), controls=[pixels], sampling=TWO))
    on_two_ranks(*words, "--out", tmp_path / "two.zip")
    assert (tmp_path / "two.zip").read_bytes() == (tmp_path / "one.zip").read_bytes()


def test_a_run_states_how_its_condition_images_were_normalized(tmp_path):
    convert_images(open_collection("digits"), tmp_path / "d.zip", Conversion(hint="outline"))
    config = tiny_config(
        f"data.source={tmp_path / 'd.zip'}", "net.backbone.cond_channels=1", "total_nimg=320",
        "checkpoint_nimg=320",
    )  # fmt: skip
    Trainer(config, tmp_path / "run", torch.device("cpu")).train()
    dataset = open_dataset(tmp_path / "d.zip")
    (known,) = dataset.extra_conditions
    pixels = torch.from_numpy(np.stack([known.drawn(i) for i in range(4)]))
    for name in (tmp_path / "run", f"{tmp_path / 'run'}@sigma_rel=0.1"):
        model = load(name)
        stated = json.loads(model.metadata["condition_normalization"])
        assert stated["image"]["std"] == pytest.approx(known.normalization.std)
        expected = edm2lite.generate(model, range(4), conditioning=dataset, sampling=TWO)
        labels = [int(label) for label in dataset.labels[:4]]
        found = edm2lite.generate(model, range(4), controls=[pixels], classes=labels, sampling=TWO)
        assert found.equal(expected)


def test_what_cannot_be_told_is_refused_in_one_line(told, hints, names, tmp_path):
    folder, _ = hints
    out = ("--seeds", "0-3", "--steps", 2, "--out", tmp_path / "images")
    assert "a condition image of 1 channels), got 2" in fail(
        told, "--control", folder, "--control", folder, *out
    )
    assert "takes (no condition), got 1" in fail(names[0], "--control", folder, *out)
    silent = save_net(tmp_path / "silent.safetensors", label_dim=0, cond_channels=1)
    assert "was trained by an earlier version" in fail(silent, "--control", folder, *out)
    Image.new("RGB", (8, 8)).save(tmp_path / "color.png")
    assert "has 3; save it in gray" in fail(told, "--control", tmp_path / "color.png", *out)
    Image.new("L", (8, 9)).save(tmp_path / "tall.png")
    assert "must be [4, 1, 8, 8]" in fail(told, "--control", tmp_path / "tall.png", *out)
    assert "must be given" in fail(told, *out)
    assert not (tmp_path / "images").exists()
