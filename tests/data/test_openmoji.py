"""OpenMoji's emoji: drawn at any size on white, named as Unicode names them, without skin tones."""

import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from edm2lite.dataset import open_collection, open_dataset
from edm2lite.dataset.collection import ImageCollection
from edm2lite.tools.edm2lite import main as edm2lite


def run(*words, code=0):
    result = CliRunner().invoke(edm2lite, ["dataset", *map(str, words)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def emoji():
    return open_collection("openmoji", resolution=32)


def test_emoji_are_named_as_unicode_names_them(emoji):
    assert 1900 <= len(emoji.names) < 2100
    texts = dict(zip(emoji.names, emoji.captions.texts, strict=True))
    assert texts["2764.svg"] == ("red heart",)
    assert texts["1F34E.svg"] == ("red apple",)
    assert texts["1F1F2-1F1FD.svg"] == ("flag of mexico",)
    assert texts["1F3F4-E0067-E0062-E0065-E006E-E0067-E007F.svg"] == ("flag of england",)
    assert texts["1F3F4-200D-2620-FE0F.svg"] == ("pirate flag",)
    assert len(set(texts.values())) == len(texts)
    assert all(text == text.lower() and ":" not in text for (text,) in texts.values())
    tones = {f"1F3F{digit}" for digit in "BCDEF"}
    assert not any(tones & set(name.partition(".")[0].split("-")) for name in texts)
    assert not any("skin tone" in text for (text,) in texts.values())


def test_classes_are_the_groups_of_unicode(emoji):
    classes, values = emoji.table.classes, emoji.table.values
    assert len(classes) == 9 and {"Flags", "Food & Drink", "Smileys & Emotion"} < set(classes)
    group = {
        name: classes[value] if value >= 0 else None
        for name, value in zip(emoji.names, values.tolist(), strict=True)
    }
    assert group["1F34E.svg"] == "Food & Drink" and group["1F431.svg"] == "Animals & Nature"
    assert group["2764.svg"] == "Smileys & Emotion" and group["1F3F4-200D-2620-FE0F.svg"] == "Flags"
    flags = [name for name, (text,) in zip(emoji.names, emoji.captions.texts, strict=True)
             if text.startswith("flag of ")]  # fmt: skip
    assert len(flags) > 250 and all(group[name] == "Flags" for name in flags)
    assert (values < 0).sum() < 30 and np.bincount(values[values >= 0]).min() > 50


@pytest.mark.parametrize("side", [32, 128, 50])
def test_emoji_have_the_size_that_is_asked_for_and_sharp_edges(side):
    emoji = open_collection("openmoji", resolution=side)
    square = np.asarray(emoji.load(emoji.names.index("1F7E5.svg")))  # the red square
    assert square.shape == (side, side, 4)
    assert square[side // 2, side // 2].tolist() == [210, 47, 39, 255]  # OpenMoji's red, #d22f27
    assert square[0, 0, 3] == 0
    partly = ((square[..., 3] > 0) & (square[..., 3] < 255)).mean()
    assert partly < 16 / side  # at most two pixels at each side of an edge


def test_an_emoji_data_set_is_white_behind_and_says_its_license(tmp_path, monkeypatch):
    monkeypatch.setattr("edm2lite.dataset.openmoji._named", lambda files: {"2764.svg": "red heart"})
    assert "1 images of 24 x 24" in run("convert", "openmoji", tmp_path / "a", "--resolution", 24)
    dataset = open_dataset(tmp_path / "a")
    assert dataset.captions.texts == [("red heart",)]
    assert dataset.image_shape == (3, 24, 24)
    assert dataset.read(0)[:, 0, 0].tolist() == [255, 255, 255]
    assert "CC BY-SA 4.0" in json.loads((tmp_path / "a" / "dataset.json").read_text())["license"]
    run("convert", "openmoji", tmp_path / "b", "--background", "black", "--no-captions")
    plain = open_dataset(tmp_path / "b")
    assert plain.image_shape == (3, 72, 72) and plain.captions is None
    assert plain.read(0)[:, 0, 0].tolist() == [0, 0, 0]


def test_a_folder_named_openmoji_makes_the_name_ambiguous(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openmoji").mkdir()
    output = run("convert", "openmoji", "a", code=1)
    assert "openmoji must name one thing, it is a data set of edm2lite and a folder here" in output
    assert "write ./openmoji for the latter" in output and len(output.strip().splitlines()) == 1
    assert "openmoji must hold images" in run("convert", "./openmoji", "a", code=1)
    target = "edm2lite.dataset.openmoji:open_openmoji"
    assert target in output and len(open_collection(target).names) > 1900


def test_without_the_packages_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ImportError, match="OpenMoji needs resvg-py; pip install .edm2lite.emoji"):
        open_collection("openmoji")


def own(resolution):
    from PIL import Image

    return ImageCollection("own", ["a"], lambda i: Image.new("L", (resolution, 9)), None)


def test_a_function_of_your_own_is_a_collection(tmp_path):
    run("convert", f"{__name__}:own", tmp_path / "a", "--resolution", 9, "--gray")
    assert open_dataset(tmp_path / "a").image_shape == (1, 9, 9)
    output = run("convert", "math:sqrt", tmp_path / "b", "--resolution", 9, code=1)
    assert output == "Error: collection math:sqrt must return an ImageCollection, got float\n"
