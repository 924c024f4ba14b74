"""Images in memory: a tensor as before, named by classes, shown and saved as the command does."""

import copy
import dataclasses
import io
import json
import pickle

import numpy as np
import pytest
import torch
from generating import files, save_net
from PIL import Image

from edm2lite.image_grid import labeled_mosaic
from edm2lite.models.loading import load
from edm2lite.sampling import Images, Sampling, generate

TWO = Sampling(num_steps=2)
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "all")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    found = load(save_net(tmp_path_factory.mktemp("models") / "net.safetensors"))
    metadata = {**found.metadata, "class_names": json.dumps(NAMES)}
    return dataclasses.replace(found, metadata=metadata)


@pytest.fixture(scope="module")
def images(model):
    return generate(model, range(8), classes=["three", "one"], sampling=TWO)


def test_images_are_a_tensor_whose_parts_are_plain_tensors(model, images):
    assert isinstance(images, torch.Tensor) and images.dtype == torch.uint8
    for part in (images[0], images[:2], images + 0, images.float(), torch.cat([images, images])):
        assert type(part) is torch.Tensor
    assert isinstance(images.numpy(), np.ndarray) and len(images) == len(list(images)) == 8
    assert images.equal(generate(model, range(8), classes=[3, 1] * 4, sampling=TWO))


def test_images_know_their_seeds_and_classes(model, images):
    assert images.seeds == [*range(8)] and images.labels == [3, 1] * 4
    assert images.names == ["three", "one"] * 4 and images.prompts is None
    assert repr(images) == "Images(8 of 1 x 8 x 8, seeds 0 to 7: three, one)"
    nameless = dataclasses.replace(model, metadata={})
    plain = generate(nameless, [4], classes=2, sampling=TWO)
    assert (plain.labels, plain.names) == ([2], None)
    assert repr(plain) == "Images(1 of 1 x 8 x 8, seed 4)"
    assert repr(generate(model, [], sampling=TWO)) == "Images(0 of 1 x 8 x 8)"


def test_a_grid_shows_the_images_and_their_names(images):
    picture = np.asarray(images.grid(columns=4, names=False))
    assert picture.shape == (2 * 51 + 3, 4 * 51 + 3)  # each enlarged by 6, three pixels between
    cells = picture[3:, 3:].reshape(2, 51, 4, 51)[:, :48:6, :, :48:6].transpose(0, 2, 1, 3)
    assert np.array_equal(cells.reshape(8, 8, 8), images.numpy()[:, 0])
    expected = labeled_mosaic(list(images.numpy()), 4, images.names)
    assert np.array_equal(np.asarray(images.grid(columns=4)), expected[0])


def test_default_grids_are_a_row_or_a_square(images):
    assert images.grid(names=False).size == (8 * 51 + 3, 54)
    nine = Images.of(images._generator, torch.zeros(9, 1, 8, 8, dtype=torch.uint8))
    assert nine.grid(names=False).size == (3 * 51 + 3,) * 2
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        images.grid(columns=0)
    with pytest.raises(ValueError, match="at least one image"):
        Images.of(images._generator, torch.zeros(0, 1, 8, 8, dtype=torch.uint8)).grid()


def test_a_notebook_shows_the_grid(images):
    with Image.open(io.BytesIO(images._repr_png_())) as shown:
        assert np.array_equal(np.asarray(shown), np.asarray(images.grid()))


def test_saved_images_are_those_that_generate_writes(model, images, tmp_path):
    assert images.save(tmp_path / "a") == tmp_path / "a"
    options = {"classes": ["three", "one"], "sampling": TWO}
    generate(model, range(8), **options, out=tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    images.save(tmp_path / "a.zip")
    generate(model, range(8), **options, out=tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    other = generate(model, range(8), classes=3, sampling=TWO)
    with pytest.raises(ValueError, match="holds seed 1 as class 1, not 3"):
        other.save(tmp_path / "a")
    generate(model, [], sampling=TWO).save(tmp_path / "none")
    assert not list((tmp_path / "none").rglob("*.png"))


def test_copies_are_whole_and_pickles_plain(images):
    copied = copy.deepcopy(images)
    assert type(copied) is Images and copied.equal(images) and copied.seeds == images.seeds
    assert copied.data_ptr() != images.data_ptr()
    assert type(pickle.loads(pickle.dumps(images))) is torch.Tensor
    buffer = io.BytesIO()
    torch.save(images, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True).equal(images)


def test_a_model_describes_itself_in_one_line(model):
    shown = repr(model)
    assert shown.startswith(f"Model({model.name!r}, unet, ")
    assert shown.endswith("parameters, 1 x 8 x 8, takes 10 classes)") and "\n" not in shown


def test_the_root_package_has_a_name_for_each_thing_to_do(run_dir, tmp_path):
    """``sweep`` is a package and can be called."""
    import edm2lite

    assert {"load", "generate", "evaluate", "sweep", "reconstruct"} <= set(edm2lite.__all__)
    found = edm2lite.sweep(run_dir, [0.1], metric="loss", data="digits", num=20, out=tmp_path)
    assert [point.sigma_rel for point in found.points] == [None, 0.1]  # None is raw
