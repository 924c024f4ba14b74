"""Data sets of others: what is altered is found, what is too large or deep is refused."""

import io
import itertools
import os
import struct
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from edm2lite.dataset import files as files_module
from edm2lite.dataset import open_dataset
from edm2lite.dataset.checks import find_problems
from edm2lite.dataset.decoding import decode_image
from edm2lite.dataset.files import open_files
from edm2lite.dataset.npy import parse_npy

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 12, 3), dtype=np.uint8)


def encoded(pixels, form="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("pixels", [PIXELS, PIXELS[..., 0]], ids=["color", "gray"])
def test_every_flipped_bit_of_a_png_is_found_or_changes_nothing(pixels):
    whole = encoded(pixels)
    expected = decode_image(whole, "a.png", "x")
    found = 0
    for at, bit in itertools.product(range(len(whole)), range(8)):
        data = bytearray(whole)
        data[at] ^= 1 << bit
        try:
            np.testing.assert_array_equal(decode_image(bytes(data), "a.png", "x"), expected)
        except ValueError:
            found += 1
    assert found > 7.5 * len(whole)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L"])
def test_pixels_of_16_bits_are_refused_in_the_same_words(tmp_path, mode):
    from hostile_files import _png

    color = {"L": 0, "RGB": 2, "LA": 4, "RGBA": 6}[mode]
    (tmp_path / "0.png").write_bytes(_png(2, 2, 16, color))
    with pytest.raises(ValueError, match="0.png in .* more than 8 bits per channel; save it with"):
        open_dataset(tmp_path)
    (tmp_path / "0.png").write_bytes(_png(2, 2, 8, color))
    assert len(open_dataset(tmp_path)) == 1


def test_16_bits_of_other_formats_are_refused():
    ppm = b"P6 2 1 65535\n" + bytes(12)
    tiff = io.BytesIO()
    Image.fromarray(np.zeros((2, 2), np.uint16)).save(tiff, "TIFF")
    for data in (ppm, tiff.getvalue()):
        with pytest.raises(ValueError, match="more than 8 bits"):
            decode_image(data, "a", "x")
    assert decode_image(b"P6 2 1 255\n" + bytes(6), "a", "x").shape == (3, 1, 2)


def archive(path, entries, method=zipfile.ZIP_DEFLATED):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as file:
        warnings.simplefilter("ignore")  # of names that stand twice
        for name, data in entries:
            file.writestr(name, data)
    return path


def test_a_zip_with_a_name_twice_is_refused(tmp_path):
    path = archive(tmp_path / "a.zip", [("0.png", encoded(PIXELS))] * 2)
    with pytest.raises(ValueError, match=r"a.zip has two entries '0.png'"):
        open_dataset(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_entries_that_unpack_without_bound_are_refused(tmp_path, method):
    path = archive(tmp_path / "a.zip", [("0.png", encoded(PIXELS))], method)
    with pytest.raises(ValueError, match="must be stored or deflated"):
        open_dataset(path)


def test_files_are_read_up_to_a_limit(tmp_path, monkeypatch):
    data = encoded(PIXELS)
    path = archive(tmp_path / "a.zip", [("0.png", data), ("1.png", data + bytes(9))])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "1.png").write_bytes(data + bytes(9))
    for place in (path, tmp_path / "folder"):
        files = open_files(place)
        assert files.read("1.png", len(data) + 9) == data + bytes(9)
        with pytest.raises(ValueError, match=rf"must have at most {len(data)} bytes, it has"):
            files.read("1.png", len(data))
    assert files_module.LARGEST == 2**28


def test_an_entry_that_lies_about_its_size_is_refused(tmp_path):
    path = archive(tmp_path / "a.zip", [("0.png", bytes(2**24))])
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"PK\x01\x02") + 24
    raw[at : at + 4] = struct.pack("<I", 100)
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="0.png in .* cannot be read"):
        open_files(path).read("0.png")


def test_a_table_may_not_be_larger_than_its_images_need(tmp_path):
    table = b'{"labels": null}' + b" " * 2**21
    path = archive(tmp_path / "a.zip", [("0.png", encoded(PIXELS)), ("dataset.json", table)])
    with pytest.raises(ValueError, match="dataset.json in .* must have at most"):
        open_dataset(path)


def test_a_pipe_among_images_is_refused_at_once(tmp_path):
    (tmp_path / "0.png").write_bytes(encoded(PIXELS))
    os.mkfifo(tmp_path / "1.png")
    with pytest.raises(ValueError, match="1.png must be a file or a folder, it is a pipe"):
        open_dataset(tmp_path)


def test_an_image_of_more_pixels_than_pillow_trusts_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="a.png in x"):
        decode_image(encoded(PIXELS), "a.png", "x")


def test_verify_names_a_png_whose_pixels_were_altered(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(encoded(PIXELS))
    data = bytearray((tmp_path / "1.png").read_bytes())
    data[data.index(b"IDAT") + 30] ^= 1
    (tmp_path / "1.png").write_bytes(data)
    (problem,) = find_problems(open_dataset(tmp_path))
    assert problem.startswith("1.png in")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", "<f4", ">f8", "<i8", "?"])
def test_arrays_are_those_that_numpy_reads(order, dtype):
    array = np.asarray(np.arange(24).reshape(2, 3, 4) % 2, dtype, order=order)
    buffer = io.BytesIO()
    np.save(buffer, array)
    found = parse_npy(buffer.getvalue())
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype and found.flags["W"]
