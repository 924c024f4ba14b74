"""Folders that were not converted: read with the pixels and classes that conversion gives."""

import io

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tiny_run import tiny_config

from edm2lite.dataset import open_dataset, summarize
from edm2lite.dataset.collection import open_collection
from edm2lite.dataset.conversion import Conversion
from edm2lite.dataset.convert import convert_images
from edm2lite.metrics import statistics
from edm2lite.metrics.extractors import Extractor
from edm2lite.tools.edm2lite import main as edm2lite
from edm2lite.training.compatibility import check_fit

SIDE = 12
TURN = 6  # EXIF: to be turned by 90 degrees clockwise


def odd_images(folder):
    """Class folders of images that are not plain RGB: transparent, palette, turned, CMYK, ..."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    alpha = rng.integers(0, 256, (SIDE, SIDE, 1), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = TURN
    clear = Image.fromarray(np.concatenate([rgb, alpha], axis=2))
    palette = Image.fromarray(rgb).quantize(16)
    sides = {"gif": 3, "png": bytes(range(0, 256, 16))}  # which entries are transparent, how much
    for name in ("Animals & Nature", "flags"):
        (folder / name).mkdir(parents=True)
    first, second = folder / "Animals & Nature", folder / "flags"
    clear.save(first / "alpha.png")
    clear.save(first / "alpha.webp", lossless=True, exact=True)
    palette.save(first / "palette.png", transparency=sides["png"])
    palette.save(first / "palette.gif", transparency=sides["gif"])
    Image.fromarray(rgb).save(second / "plain.png")
    Image.fromarray(rgb).save(second / "turned.png", exif=exif)
    Image.fromarray(rgb).save(second / "turned.jpg", exif=exif)
    Image.fromarray(rgb).convert("CMYK").save(second / "cmyk.jpg")
    Image.fromarray(rgb[..., 0]).convert("LA").save(second / "gray with alpha.png")
    Image.fromarray(rgb).save(second / "photo.tif")
    return rgb, alpha


@pytest.fixture
def raw(tmp_path):
    odd_images(tmp_path / "raw")
    return tmp_path / "raw"


def convert(source, dest, **options):
    convert_images(open_collection(source), dest, Conversion(crop="none", **options))
    return open_dataset(dest)


def test_a_raw_folder_is_not_read_without_alpha_and_without_its_classes(raw, tmp_path):
    """Warnings are errors here: PIL's about palettes with transparency is not given."""
    direct, converted = open_dataset(raw), convert(raw, tmp_path / "a.zip")
    assert len(direct) == len(converted) == 10
    np.testing.assert_array_equal(direct.images(range(10)), converted.images(range(10)))
    assert direct.labels.tolist() == converted.labels.tolist() == [0] * 4 + [1] * 6
    assert direct.table.classes == converted.table.classes == ("Animals & Nature", "flags")
    assert summarize(direct).standardizing == summarize(converted).standardizing
    mean = Extractor("mean", None, lambda x: x.float().mean((2, 3)), "")
    assert statistics(raw, mean).digest == statistics(tmp_path / "a.zip", mean).digest


def test_transparent_parts_are_white_and_photos_upright_in_a_raw_folder(tmp_path):
    rgb, alpha = odd_images(tmp_path)
    dataset = open_dataset(tmp_path)
    by_name = {name: dataset.read(i).transpose(1, 2, 0) for i, name in enumerate(dataset.names)}
    share = alpha / 255
    expected = share * rgb + (1 - share) * 255
    for name in ("alpha.png", "alpha.webp"):
        np.testing.assert_allclose(by_name[f"Animals & Nature/{name}"], expected, atol=1)
    np.testing.assert_array_equal(by_name["flags/plain.png"], rgb)
    np.testing.assert_array_equal(by_name["flags/turned.png"], np.rot90(rgb, -1))
    np.testing.assert_array_equal(by_name["flags/photo.tif"], rgb)
    gray = by_name["flags/gray with alpha.png"]
    assert (gray == gray[..., :1]).all()
    np.testing.assert_array_equal(gray[..., 0], rgb[..., 0])


def test_the_pixels_of_the_reference_can_be_had_by_switches(raw, tmp_path):
    """EDM's and EDM2's converters take what PIL stores, as RGB."""
    words = ["dataset", "convert", str(raw), str(tmp_path / "a"), "--crop", "none"]
    result = CliRunner().invoke(
        edm2lite, [*words, "--exif", "ignore", "--background", "none"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    dataset = open_dataset(tmp_path / "a")
    for i, name in enumerate(open_collection(raw).names):
        image = Image.open(io.BytesIO((raw / name).read_bytes()))
        if "palette" in name:  # as PIL asks for, instead of a warning
            image = image.convert("RGBA")
        expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(dataset.read(i).transpose(1, 2, 0), expected, err_msg=name)


def test_the_background_is_any_color(tmp_path):
    (tmp_path / "raw").mkdir()
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(tmp_path / "raw" / "a.png")
    for name, color in (("black", [0, 0, 0]), ("#102030", [16, 32, 48]), (None, [10, 20, 30])):
        dataset = convert(tmp_path / "raw", tmp_path / f"{name}.zip", background=name)
        assert dataset.read(0)[:, 0, 0].tolist() == color
    for wrong in ("whitish", "#10203040"):
        with pytest.raises(ValueError, match="background must be an opaque color.*got"):
            Conversion(background=wrong)


def test_gray_files_are_one_channel_and_do_not_mix_with_others(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4), dtype=np.uint8)
    (tmp_path / "gray").mkdir()
    Image.fromarray(pixels).save(tmp_path / "gray" / "a.png")
    direct = open_dataset(tmp_path / "gray")
    np.testing.assert_array_equal(direct.read(0), pixels[None])
    converted = convert(tmp_path / "gray", tmp_path / "a.zip", gray=True)
    np.testing.assert_array_equal(direct.read(0), converted.read(0))
    Image.new("RGB", (4, 4)).save(tmp_path / "gray" / "b.png")
    with pytest.raises(ValueError, match="b.png is .3, 4, 4. .* edm2lite dataset convert"):
        open_dataset(tmp_path / "gray").images([0, 1])


def test_folders_that_conversion_refuses_are_refused_by_name(raw):
    Image.new("RGB", (SIDE, SIDE)).save(raw / "loose.png")
    with pytest.raises(ValueError, match="loose.png and 0 others.* dataset convert --no-labels"):
        open_dataset(raw)


def test_folders_of_seeds_are_no_classes(run_dir, tmp_path):
    words = ["generate", str(run_dir), "--seeds", "0,1000", "--steps", "1"]
    result = CliRunner().invoke(edm2lite, [*words, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    (tmp_path / "out" / "dataset.json").unlink(missing_ok=True)
    assert open_dataset(tmp_path / "out").table is None


def test_a_run_with_classes_on_a_folder_without_says_how_to_get_them(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="got 10 classes; to give .* edm2lite dataset convert"):
        check_fit(tiny_config(), open_dataset(tmp_path))


def test_missing_labels_are_not_said_to_work_in_edm2(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("path,label\na.png,1\na.png,\n")
    words = ["dataset", "convert", str(tmp_path / "list.csv"), str(tmp_path / "a.zip")]
    result = CliRunner().invoke(edm2lite, words)
    assert "note: some images have no label, which EDM and EDM2 cannot read" in result.output
