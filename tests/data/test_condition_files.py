"""Condition images on disk: read as stored, converted with their images, checked by name."""

import json
import shutil
import zipfile

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from edm2lite.dataset import open_collection, open_dataset
from edm2lite.dataset.condition_files import normalization_of
from edm2lite.dataset.conditions import Normalization
from edm2lite.dataset.conversion import Conversion
from edm2lite.dataset.convert import convert_images
from edm2lite.network.conditions import ConditionImage
from edm2lite.tools.edm2lite import main as edm2lite

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 12, 16, 3), dtype=np.uint8)
EDGES = RNG.integers(0, 200, (6, 12, 16), dtype=np.uint8)
NAMES = [f"0000{i % 2}/img{i}.png" for i in range(6)]
PAIRS = [[name, f"conditions/{i}.png"] for i, name in enumerate(NAMES)]


def run(*words, code=0):
    result = CliRunner().invoke(edm2lite, ["dataset", *map(str, words)])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def make(folder, images=PIXELS, beside=EDGES, **table):
    """A folder of images, gray condition images, and their dataset.json."""
    for name, (_, file), image, condition in zip(NAMES, PAIRS, images, beside, strict=True):
        save(folder / name, image)
        save(folder / file, condition)
    labels = [[name, i % 3] for i, name in enumerate(NAMES)]
    content = {"labels": labels, "conditions": {"image": PAIRS}, **table}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def packed(folder):
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as file:
        for path in folder.rglob("*.*"):
            file.write(path, path.relative_to(folder))
    return folder.with_suffix(".zip")


ORDER = sorted(range(6), key=NAMES.__getitem__)  # rows of a data set are sorted by name


@pytest.mark.parametrize("form", [lambda folder: folder, packed], ids=["folder", "zip"])
def test_condition_images_are_paired_by_name_and_normalized(form, tmp_path):
    dataset = open_dataset(form(make(tmp_path / "a")))
    assert len(dataset) == 6 and dataset.names == sorted(NAMES)
    assert dataset.conditions[1:] == (ConditionImage(1),)
    told = dataset.conditioning([5, 0])
    expected = (EDGES[ORDER][[5, 0]][:, None].astype(np.float64) - 127.5) / 63.75
    np.testing.assert_allclose(told["image"].numpy(), expected, rtol=1e-6, atol=1e-7)
    assert told["label"].tolist() == [ORDER[5] % 3, ORDER[0] % 3]
    np.testing.assert_array_equal(dataset.read(2), PIXELS[ORDER[2]].transpose(2, 0, 1))


def test_the_stored_normalization_is_the_one_that_is_used(tmp_path):
    stated = {"image": {"mean": 40, "std": 12.5}}
    dataset = open_dataset(
        make(tmp_path / "a", PIXELS, PIXELS[::-1], condition_normalization=stated)
    )
    got = dataset.conditioning([1])["image"].numpy()
    expected = (PIXELS[::-1][ORDER[1]].transpose(2, 0, 1).astype(np.float64) - 40) / 12.5
    np.testing.assert_allclose(got[0], expected, rtol=1e-6)
    assert dataset.conditions[1] == ConditionImage(3)


def test_there_may_be_several_and_images_of_several_sizes(tmp_path):
    sizes = [[name, 12, 16 - i] for i, name in enumerate(NAMES)]
    images = [PIXELS[i, :, : 16 - i] for i in range(6)]
    edges = [EDGES[i, :, : 16 - i] for i in range(6)]
    for i in range(6):
        save(tmp_path / "a" / "depth" / f"{i}.bmp", images[i])
    depth = [[name, f"depth/{i}.bmp"] for i, name in enumerate(NAMES)]
    conditions = {"image": PAIRS, "depth": depth}
    dataset = open_dataset(make(tmp_path / "a", images, edges, sizes=sizes, conditions=conditions))
    assert dataset.conditions[1:] == (ConditionImage(1), ConditionImage(3, "depth"))
    for row, i in enumerate(ORDER):
        told = dataset.conditioning([row])
        assert told["image"].shape == (1, 1, 12, 16 - i)
        assert told["depth"].shape == (1, 3, 12, 16 - i)
    assert "6 images in" in run("verify", tmp_path / "a")


@pytest.mark.parametrize(
    "table, message",
    [
        ({"conditions": {"image": PAIRS[1:]}}, "00000/img0.png and 1 others have none; add"),
        ({"conditions": {"image": PAIRS[:3]}}, "00000/img4.png and 5 others have none; add"),
        (
            {"conditions": {"image": [*PAIRS[:5], [NAMES[5], "5.png"]]}},
            "5.png, which does not exist",
        ),
        ({"conditions": {"image": [[n, n] for n in NAMES]}}, "img0.png .* both as an image and"),
        ({"conditions": {"label": PAIRS}}, "must not be named label"),
        ({"conditions": PAIRS}, "must be lists of .image, file. pairs"),
        ({"conditions": {"image": [[n, None] for n in NAMES]}}, "must be text, got None"),
        ({"condition_normalization": {"image": {"mean": 3}}}, "must have a finite mean .* 'std'"),
        ({"condition_normalization": {"image": {"mean": 3, "std": 0}}}, "a positive std"),
        ({"condition_normalization": [1]}, "condition_normalization in .* must have"),
    ],
)
def test_lists_that_do_not_pair_are_explained(table, message, tmp_path):
    folder = make(tmp_path / "a", **table)
    with pytest.raises(ValueError, match=message) as caught:
        open_dataset(folder)
    assert "\n" not in str(caught.value)
    if "condition_normalization" not in table:
        with pytest.raises(ValueError, match=message):
            open_collection(folder)


@pytest.fixture
def damaged(tmp_path):
    """Condition images 1 to 4 are too small, in color, no image, and of 16 bits."""
    folder = make(tmp_path / "a")
    save(folder / "conditions" / "1.png", EDGES[1, :11])
    save(folder / "conditions" / "2.png", PIXELS[2])
    (folder / "conditions" / "3.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((12, 16), np.uint16)).save(folder / "conditions" / "4.png")
    return folder


DAMAGE = {
    1: "conditions/1.png in .* the size of its image 00001/img1.png, 12 x 16, got 11 x 16",
    2: "must all have the 1 channels of conditions/0.png, conditions/2.png has 3",
    3: "conditions/3.png in .* cannot be read as an image",
    4: "conditions/4.png in .* more than 8 bits",
}


def test_damage_is_named_when_it_is_met_and_by_verify(damaged):
    dataset = open_dataset(damaged)
    for i, message in DAMAGE.items():
        with pytest.raises(ValueError, match=message):
            dataset.conditioning([ORDER.index(i)])
    output = run("verify", damaged, code=1)
    assert "4 problems found in the 6 images" in output
    (damaged / NAMES[3]).write_bytes(b"")
    assert "5 problems found" in run("verify", damaged, code=1)


def test_verify_checks_conditions_of_any_kind(tmp_path):
    from edm2lite.dataset.checks import find_problems

    images = np.zeros((6, 1, 12, 16), np.float32)
    images[4, 0, 2, 3] = np.nan
    dataset = open_dataset(make(tmp_path / "a")).with_condition(
        ConditionImage(1, "mine"), lambda i: images[i, :, : 12 - (i == 1)]
    )
    short, nan = find_problems(dataset)
    assert "00000/img2.png in" in short and "[1, 1, 12, 16]" in short
    assert "mine of 00001/img3.png in" in nan and "must be finite" in nan


def test_info_says_how_conditions_look_to_a_network(tmp_path):
    text = run("info", make(tmp_path / "a"))
    values = (EDGES.astype(np.float64) - 127.5) / 63.75
    assert (
        f"condition: a condition image of 1 channels, mean {values.mean():.3f} and standard"
        f" deviation {values.std():.3f} as a network sees it" in text
    )


def test_preview_draws_condition_images_beside_their_images(tmp_path):
    run("preview", make(tmp_path / "a"), "--columns", 3, "--out", tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 150 + 6, 6 * 134 + 6, 3)
    found = []
    for row in range(2):
        for column in range(3):
            # cells of 128 pixels with a gap of 6, names of 16 pixels below; eightfold, centered
            y, x = 6 + 150 * row + 16, 6 + 268 * column
            image = sheet[y : y + 96 : 8, x : x + 128 : 8]
            condition = sheet[y : y + 96 : 8, x + 134 : x + 262 : 8]
            (index,) = (i for i in range(6) if (PIXELS[i] == image).all())
            assert (condition == EDGES[index][..., None]).all()
            found.append(index)
    assert sorted(found) == list(range(6))


PHOTOS = RNG.integers(0, 256, (6, 40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "options",
    [
        {"resolution": 16},
        {"resolution": 16, "transform": "dhariwal", "mirror": True},
        {"resolution": 24, "crop": "none"},
        {"resolution": 32, "crop": "buckets", "bucket_step": 8},
        {},
    ],
)
def test_condition_images_are_converted_as_their_images_are(options, tmp_path):
    """Condition images that equal their images still do so after the conversion."""
    folder = make(tmp_path / "a", PHOTOS, PHOTOS)
    convert_images(open_collection(folder), tmp_path / "b.zip", Conversion(**options))
    dataset = open_dataset(tmp_path / "b.zip")
    assert len(dataset) == 12 if options.get("mirror") else 6
    images = dataset.images(range(len(dataset))).astype(np.float64)
    told = dataset.conditioning(range(len(dataset)))
    # the values of a network have mean 0 and variance 1 over the data set; float32 from 0..255
    expected = (images - images.mean()) / images.std()
    np.testing.assert_allclose(told["image"].numpy(), expected, rtol=1e-5, atol=1e-5)
    assert told["label"].tolist() == dataset.labels.tolist()


def test_gray_condition_images_stay_gray_and_gray_images_leave_color_conditions(tmp_path):
    make(tmp_path / "a", PHOTOS, PHOTOS[..., 0])
    convert_images(open_collection(tmp_path / "a"), tmp_path / "b", Conversion(resolution=8))
    assert open_dataset(tmp_path / "b").conditions[1] == ConditionImage(1)
    make(tmp_path / "c", PHOTOS, PHOTOS)
    gray = Conversion(resolution=8, gray=True)
    convert_images(open_collection(tmp_path / "c"), tmp_path / "d", gray)
    dataset = open_dataset(tmp_path / "d")
    assert dataset.image_shape[0] == 1 and dataset.conditions[1] == ConditionImage(3)


def test_a_normalization_that_is_stated_is_kept_or_taken_from_another_data_set(tmp_path):
    stated = {"image": {"mean": 30.0, "std": 20.0}}
    make(tmp_path / "stated", condition_normalization=stated)
    make(tmp_path / "plain")
    run("convert", tmp_path / "stated", tmp_path / "a.zip", "--resolution", 8)
    assert normalization_of(tmp_path / "a.zip") == {"image": Normalization(30, 20)}
    text = run(
        "convert", tmp_path / "plain", tmp_path / "b", "--resolution", 12,
        "--normalize-like", tmp_path / "a.zip",
    )  # fmt: skip
    assert "(image) are normalized by mean 30.00 and standard deviation 20.00" in text
    assert normalization_of(tmp_path / "b") == {"image": Normalization(30, 20)}
    assert normalization_of(tmp_path / "plain") == {"image": Normalization(127.5, 63.75)}
    shutil.rmtree(tmp_path / "b")
    run("convert", tmp_path / "plain", tmp_path / "b", "--no-conditions")
    dataset = open_dataset(tmp_path / "b")
    assert len(dataset) == 6 and [c.name for c in dataset.conditions] == ["label"]
    with pytest.raises(ValueError, match="must have condition images to be an example"):
        normalization_of(tmp_path / "b")


def test_lists_may_name_condition_images(tmp_path):
    folder = make(tmp_path / "a", PHOTOS, PHOTOS)
    rows = [f"{name},{condition},{i}" for i, (name, condition) in enumerate(PAIRS)]
    (folder / "list.csv").write_text("\n".join(["path,condition,label", *rows]))
    run("convert", folder / "list.csv", tmp_path / "b.zip", "--resolution", 16)
    dataset = open_dataset(tmp_path / "b.zip")
    assert dataset.labels.tolist() == list(range(6))
    values, images = dataset.conditioning(range(6))["image"].numpy(), dataset.images(range(6))
    assert np.corrcoef(values.flatten(), images.flatten())[0, 1] > 0.9999
    (folder / "list.csv").write_text("\n".join(["path,condition,label", *rows[:-1], "a.png,,1"]))
    output = run("convert", folder / "list.csv", tmp_path / "c", code=1)
    assert "for every image or for none, it has none for a.png" in output


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: save(f, EDGES[2, :9]), "img2.png .* its condition image .* 12 x 16, got 9 x 16"),
        (lambda f: f.write_bytes(b""), "img2.png .* conditions/2.png in .* cannot be read"),
        (lambda f: save(f, PIXELS[2]), "must be all gray or all in color, found both"),
    ],
)
def test_condition_images_that_cannot_be_converted_are_explained(change, message, tmp_path):
    folder = make(tmp_path / "a")
    change(folder / "conditions" / "2.png")
    output = run("convert", folder, tmp_path / "b", "--resolution", 8, code=1)
    assert output.count("Error") == 1 and not (tmp_path / "b").exists()
    with pytest.raises(ValueError, match=message):
        convert_images(open_collection(folder), tmp_path / "b", Conversion(resolution=8))


def test_an_image_with_a_damaged_condition_image_can_be_left_out(damaged, tmp_path):
    (damaged / "conditions" / "2.png").write_bytes(b"")  # of color before, which no option excuses
    text = run("convert", damaged, tmp_path / "b", "--resolution", 8, "--skip-damaged")
    assert text.count("left out: ") == 4 and len(open_dataset(tmp_path / "b")) == 2


def test_condition_images_without_any_contrast_are_refused(tmp_path):
    make(tmp_path / "a", PIXELS, np.full_like(EDGES, 7))
    with pytest.raises(ValueError, match="all values are 7; leave them out by --no-conditions"):
        convert_images(open_collection(tmp_path / "a"), tmp_path / "b", Conversion())


def test_latents_have_no_condition_images_and_say_so(vae, tmp_path):
    from edm2lite.dataset.encode import encode_images
    from edm2lite.models.autoencoder import load_autoencoder

    dataset = open_dataset(make(tmp_path / "a"))
    with pytest.raises(
        ValueError, match="labels and captions only, .* also has a condition image of 1 channels"
    ):
        encode_images(dataset, tmp_path / "b", load_autoencoder(str(vae), "cpu"))
    assert not (tmp_path / "b").exists()
    for name in NAMES:
        (tmp_path / "a" / name).unlink()
        np.save(tmp_path / "a" / name.replace("png", "npy"), np.ones((8, 12, 16), np.float32))
    pairs = [[name.replace("png", "npy"), file] for name, file in PAIRS]
    content = json.dumps({"labels": None, "conditions": {"image": pairs}})
    (tmp_path / "a" / "dataset.json").write_text(content)
    with pytest.raises(ValueError, match="latents in .* cannot have condition images"):
        open_dataset(tmp_path / "a")
