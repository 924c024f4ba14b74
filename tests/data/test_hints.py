"""Condition images that a conversion computes, or finds by name in a folder."""

import numpy as np
import pytest
from data.test_condition_files import EDGES, NAMES, PIXELS, make, run, save
from PIL import Image

from edm2lite.dataset import open_dataset
from edm2lite.dataset.hints import edges, find_hint, outline
from edm2lite.network.conditions import ConditionImage


def test_edges_are_the_slope_of_lightness():
    """By hand: Sobel's kernels at a pixel inside, against a ramp and a corner."""
    rng = np.random.default_rng(0)
    light = rng.integers(0, 256, (7, 9), dtype=np.uint8)
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    found = edges(light)
    for y in range(1, 6):
        for x in range(1, 8):
            part = light[y - 1 : y + 2, x - 1 : x + 2].astype(float)
            length = np.hypot((part * kernel).sum(), (part * kernel.T).sum()) / (4 * np.sqrt(2))
            assert found[y, x] == round(min(length, 255))
    steepest = np.array([[0, 0, 255, 255]] * 4, np.uint8)
    assert edges(np.full((4, 4), 90, np.uint8)).max() == 0
    assert edges(steepest).max() == round(255 / np.sqrt(2))


def test_an_outline_is_the_border_of_the_smaller_part():
    disk = np.hypot(*(np.mgrid[:9, :9] - 4)) < 3
    image = np.where(disk, 220, 10).astype(np.uint8)
    line = outline(image) == 255
    neighbors = np.pad(disk, 1)
    inner = neighbors[:-2, 1:-1] & neighbors[2:, 1:-1] & neighbors[1:-1, :-2] & neighbors[1:-1, 2:]
    assert (line == (disk & ~inner)).all()
    assert (outline(255 - image) == outline(image)).all()
    assert not outline(np.zeros((4, 4), np.uint8)).any()


def test_lower_resolution_is_the_mean_of_squares():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 3), dtype=np.uint8)
    found = find_hint("lowres:4")(pixels)
    for x in (0, 4):
        mean = pixels[:, x : x + 4].reshape(-1, 3).mean(0)
        assert np.abs(found[:, x : x + 4] - mean).max() <= 0.5
        assert (found[:, x : x + 4] == found[0, x]).all()


@pytest.mark.parametrize("hint, channels", [("edges", 1), ("gray", 1), ("lowres:2", 3)])
def test_a_conversion_stores_what_it_computes_from_the_final_pixels(hint, channels, tmp_path):
    source = make(tmp_path / "a")
    run("convert", source, tmp_path / "b.zip", "--resolution", 8, "--no-conditions",
        "--condition", hint, "--mirror")  # fmt: skip
    dataset = open_dataset(tmp_path / "b.zip")
    assert ConditionImage(channels) in dataset.conditions and len(dataset) == 12
    (told,) = dataset.extra_conditions
    for i in (0, 5):
        pixels = dataset.read(i).transpose(1, 2, 0)
        expected = find_hint(hint)(np.ascontiguousarray(pixels))
        expected = expected[None] if expected.ndim == 2 else expected.transpose(2, 0, 1)
        if i % 2 == 0:  # the second of each pair is mirrored as a whole
            assert (told.drawn(i) == expected).all()
            assert (told.drawn(i + 1) == expected[..., ::-1]).all()


def test_digits_are_a_collection_too(tmp_path):
    run("convert", "digits", tmp_path / "d.zip", "--condition", "outline")
    dataset, digits = open_dataset(tmp_path / "d.zip"), open_dataset("digits")
    assert (dataset.images(range(9)) == digits.images(range(9))).all()
    assert (dataset.labels == digits.labels).all()
    assert ConditionImage(1) in dataset.conditions


def test_condition_images_of_a_folder_are_paired_by_name(tmp_path):
    source, beside = tmp_path / "photos", tmp_path / "depth"
    for i, name in enumerate(NAMES):
        save(source / name, PIXELS[i])
        save((beside / name).with_suffix(".bmp"), EDGES[i])
    save(beside / "more" / "unused.png", EDGES[0])
    run("convert", source, tmp_path / "b", "--crop", "none", "--condition", beside)
    dataset = open_dataset(tmp_path / "b")
    order = sorted(range(6), key=NAMES.__getitem__)
    drawn = [dataset.extra_conditions[0].drawn(i)[0] for i in range(6)]
    assert (np.stack(drawn) == EDGES[order]).all()
    save(beside / "00000" / "img0.png", EDGES[0])
    assert "must have one condition image of a name" in run(
        "convert", source, tmp_path / "c", "--condition", beside, code=1
    )
    (beside / "00000" / "img0.png").unlink()
    (beside / "00000" / "img0.bmp").unlink()
    assert "00000/img0.png has none (looked for 00000/img0.*)" in run(
        "convert", source, tmp_path / "c", "--condition", beside, code=1
    )
    Image.new("L", (5, 5)).save(beside / "00000" / "img0.bmp")
    assert "must be of its size" in run(
        "convert", source, tmp_path / "c", "--condition", beside, code=1
    )
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (("--condition", "edgy"), "edgy"),
        (("--condition", "lowres:1"), "N of at least 2"),
        (("--condition", "lowres:5", "--no-conditions"), "sides must be multiples of 5"),
        (("--condition", "edges"), "leave them out by --no-conditions"),
        (("--condition", "numpy:shape", "--no-conditions"), "must return uint8"),
    ],
)
def test_what_cannot_be_computed_is_refused_in_one_line(words, message, tmp_path):
    source = make(tmp_path / "a")
    output = run("convert", source, tmp_path / "b", "--resolution", 8, *words, code=1)
    assert message in output.strip().splitlines()[-1]
    assert not (tmp_path / "b").exists()
