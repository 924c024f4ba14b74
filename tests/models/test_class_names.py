"""Names of classes: chosen by what a person writes, kept in files, shown in pictures."""

import json
import re
import unicodedata

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny_run import TINY, tiny_config

from edm2lite import load
from edm2lite.dataset import open_dataset
from edm2lite.dataset.joined import joined
from edm2lite.dataset.labels import as_labels
from edm2lite.image_grid import LINE, labeled_mosaic
from edm2lite.models import save_pretrained
from edm2lite.models.class_names import chosen_classes, class_title, names_in_metadata
from edm2lite.tools.edm2lite import main as edm2lite
from edm2lite.training.config import load_config
from edm2lite.training.samples import tile
from edm2lite.training.trainer import Trainer

ODD = (
    "Flags", "Food & Drink", "red, green, blue", "red", "Été", "猫", "café noir", "7", "0-3", "",
    "all", "name:x", "number:5", "crane", "crane",
)  # fmt: skip
CPU = torch.device("cpu")


def chosen(text, names=ODD):
    return chosen_classes(text, names, len(names), "odd")


def test_every_name_of_its_own_finds_its_class():
    """But for those that are empty, of two classes, or also something else."""
    other = {"", "crane", "all"}
    assert {k: chosen(n) for k, n in enumerate(ODD) if n not in other | {"0-3", "number:5"}} == {
        k: (k,) for k, n in enumerate(ODD) if n not in other | {"0-3", "number:5"}
    }
    assert chosen("all") == tuple(range(len(ODD)))
    assert chosen("name:all") == (10,) and chosen("name:0-3") == (8,) and chosen("name:7") == (7,)
    assert chosen("number:0-3") == (0, 1, 2, 3) and chosen("9") == (9,) and chosen("7") == (7,)
    assert chosen(unicodedata.normalize("NFD", "Été")) == (4,)


def test_lists_keep_their_order_and_names_their_commas():
    assert chosen("red, green, blue,red,Flags") == (2, 3, 0)
    assert chosen(" Flags , 12-14,0, Flags") == (0, 12, 13, 14, 0, 0)
    assert chosen("food,flag,CAFÉ") == (1, 0, 6)  # the beginning of one name only
    thousand = [f"class of number {k}, or so" for k in range(1000)]
    assert chosen(",".join(thousand), thousand) == tuple(range(1000))


@pytest.mark.parametrize(
    "text, line",
    [
        ("Flgas", "'Flgas' must be one of the 15 classes of odd; the nearest is 'Flags'"),
        ("Flags,,red", "class '' must be one of the 15 classes of odd"),
        ("", "class '' must be one of"),
        ("15", "class '15' must be one of the 15 classes of odd, 0 to 14"),
        ("3-15", "class '3-15' must be one of the 15 classes of odd, 0 to 14"),
        ("3-1", "class '3-1' must be one of"),
        ("-1", "class '-1' must be one of"),
        ("0-3", "class 0-3 must be one class of odd, it is the name of class number 8 and a number"
         " too; write name:0-3 or number:0-3"),
        ("crane", "class 'crane' must be one class of odd, 2 have that name or beginning"
         " (13 'crane', 14 'crane'); give more of it, or the number"),
        ("r", "2 have that name or beginning (2 'red, green, blue', 3 'red')"),
        ("a\nb" * 100, "must be one of"),
        ("9" * 400, "must be one of"),
    ],
)  # fmt: skip
def test_what_is_no_class_is_refused_in_one_line(text, line):
    with pytest.raises(ValueError, match=re.escape(line)) as caught:
        chosen(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_classes_without_names_are_chosen_by_their_numbers():
    assert chosen_classes("2,0-1", (), 3, "plain") == (2, 0, 1)
    with pytest.raises(ValueError, match="a number of a class of plain, 0 to 2, a range or list"):
        chosen_classes("Flags", (), 3, "plain")


def test_labels_take_names_that_are_missing_and_refuse_more_than_there_are_classes():
    assert as_labels([0, 1, 2], "a", ["x", ""], label_dim=3).classes == ("x", "", "")
    assert as_labels([0, 1], "a", ["", ""]).classes == ()
    assert as_labels([[0, 1], [1, 0]], "a", ["x"]).classes == ("x", "")
    for rows, dim in (([0, 1], 2), ([[0, 1], [1, 0]], None)):
        with pytest.raises(ValueError, match="at most one name for each of its 2 classes, got 3"):
            as_labels(rows, "a", ["x", "y", "z"], label_dim=dim)


def test_damaged_names_in_a_model_file_are_refused_in_one_line():
    for text in ("[1]", "{}", "[", '["a", null]'):
        with pytest.raises(ValueError, match="class_names in the metadata of m must be a list"):
            names_in_metadata({"class_names": text}, 2, "m")
    assert names_in_metadata({"class_names": '["a", "b", "c"]'}, 2, "m") == ("a", "b")
    assert names_in_metadata({}, 2, "m") == ()


NAMES = ("Animals & Nature", "flags", "Été, hiver", "猫")  # in their order


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of images in sub-folders, which is a data set as it is."""
    folder = tmp_path_factory.mktemp("photos")
    for k, name in enumerate(NAMES):
        (folder / name).mkdir()
        for i in range(12):
            pixels = np.full((8, 8), 60 * k + i, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def command(*words, code=0):
    result = CliRunner().invoke(edm2lite, [*map(str, words)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def converted(photos):
    out = photos.parent / "converted.zip"
    command("dataset", "convert", photos, out, "--resolution", 8, "--gray")
    return out


@pytest.fixture(scope="module")
def run(converted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a"
    changes = (f"data.source={converted}", "net.backbone.label_dim=4", "sample_nimg=320")
    Trainer(tiny_config(*changes, "total_nimg=320", "sample_steps=2"), folder, CPU).train()
    return folder


def test_folders_name_classes_from_conversion_to_the_model_files(photos, converted, run):
    assert open_dataset(photos).class_names == open_dataset(converted).class_names == NAMES
    assert load(run).class_names == load(f"{run}@sigma_rel=0.1,max_error=1").class_names == NAMES
    assert load(run).class_title(2) == "Été, hiver"
    text = command("dataset", "info", converted)
    assert [int(re.search(rf"(\d) +{re.escape(n)} +12", text)[1]) for n in NAMES] == [0, 1, 2, 3]


def test_generate_takes_names_and_draws_them(run, tmp_path):
    words = ("generate", run, "--seeds", "0-5", "--steps", 2)
    command(*words, "--class", "Été, hiver,flags", "--out", tmp_path / "a",
            "--grid", tmp_path / "a.png")  # fmt: skip
    table = json.loads((tmp_path / "a" / "dataset.json").read_text())
    assert [label for _, label in table["labels"]] == [2, 1, 2, 1, 2, 1]
    with Image.open(tmp_path / "a.png") as grid:  # two columns of 64 pixels, names above them
        assert grid.width == 2 * 64 + 3 * 4
        names, height = np.asarray(grid), 3 * 64 + 4 * 4
        assert (grid.height - height) % LINE == 0 and grid.height > height
    assert (names[: grid.height - height] < 128).any()
    line = command(*words, "--class", "flgs", "--grid", tmp_path / "b.png", code=1)
    assert line.splitlines()[-1].startswith("Error: class 'flgs' must be one of the 4 classes of")
    assert line.endswith("; the nearest is 'flags'\n")
    assert not (tmp_path / "b.png").exists()


def test_the_samples_of_a_run_have_a_column_for_each_class(run):
    with Image.open(sorted((run / "samples").iterdir())[0]) as grid:
        assert grid.width == 8 * 64 + 9 * 4  # twice the four classes
    images = np.zeros((6, 1, 64, 64), np.uint8)
    assert tile(images, ["a", "b", "c"] * 2).shape[1] == 3 * 128 + 4 * 4
    assert tile(images).shape == (2 * 128, 4 * 128, 1)  # without labels as ever


def test_a_label_stands_once_above_a_column_or_below_every_image():
    images = [np.full((3, 64, 64), 200, np.uint8)] * 4
    above = labeled_mosaic(images, 2, ["a", "b", "a", "b"])
    below = labeled_mosaic(images, 2, ["a", "b", "b", "b"])
    for image in images[:1]:
        np.testing.assert_array_equal(above[:, LINE + 4 : LINE + 68, 4:68], image)
        np.testing.assert_array_equal(below[:, 4:68, 4:68], image)
    assert above.shape[1] == LINE + 2 * 64 + 3 * 4 and below.shape[1] == 2 * (64 + LINE) + 3 * 4
    assert (above[:, :LINE] < 100).any() and not (above[:, LINE:] < 100).any()
    assert all((below[:, y : y + LINE] < 100).any() for y in (68, 68 + 64 + LINE + 4))


def test_letters_with_accents_are_drawn_as_letters():
    """Where the font has no such letter, every one would be the same box."""
    pytest.importorskip("matplotlib")
    image = [np.full((1, 64, 64), 255, np.uint8)]
    pictures = [labeled_mosaic(image, 1, [letter]) for letter in "éÖжΩ"]
    assert len({picture.tobytes() for picture in pictures}) == 4


def test_the_card_lists_the_classes(run, tmp_path):
    text = (save_pretrained(run, tmp_path / "card", license="mit") / "README.md").read_text()
    assert "0 Animals &amp; Nature, 1 flags, 2 Été, hiver, 3 猫." in text
    assert load(tmp_path / "card").class_names == NAMES


def prepared(config, folder):
    from edm2lite.training.preparation import prepare

    return prepare(config, folder, 1).dataset


def test_a_part_and_joined_data_keep_the_names_and_a_model_gives_its_own(run, converted, tmp_path):
    tuned = [f"init={run}", "data.label_dropout=0", *TINY[2:]]
    full = load_config(write(tmp_path, tuned, f"data.source={converted}"), ["data.classes=[1, 3]"])
    assert prepared(full, tmp_path / "a").class_names == NAMES
    plain = tmp_path / "plain"  # no classes of its own
    plain.mkdir()
    for i in range(4):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(plain / f"{i}.png")
    told = load_config(write(tmp_path, tuned, f"data.source={plain}"), ["data.as_class=2"])
    dataset = prepared(told, tmp_path / "b")
    assert dataset.class_names == NAMES and set(dataset.labels.tolist()) == {2}
    assert joined(open_dataset(converted), dataset).class_names == NAMES
    embedding = [*tuned, "tune={kind: embedding}", "data.as_class=4"]
    learned = load_config(write(tmp_path, embedding, f"data.source={plain}"))
    titles = [class_title(prepared(learned, tmp_path / "c").class_names, k) for k in range(5)]
    assert titles == [*NAMES, "class 4"]


def write(folder, overrides, *more):
    """A configuration file of changes ``a.b=c``."""
    lines: dict = {}
    for change in (*overrides, *more):
        key, _, value = change.partition("=")
        outer, _, inner = key.rpartition(".")
        (lines.setdefault(outer, []) if outer else lines.setdefault("", [])).append(
            f"{'  ' if outer else ''}{inner or key}: {value}"
        )
    text = "\n".join(lines.pop("", []))
    for outer, inner_lines in lines.items():
        text += f"\n{outer}:\n" + "\n".join(inner_lines)
    path = folder / f"c{len(list(folder.iterdir()))}.yaml"
    path.write_text(text + "\n")
    return str(path)
