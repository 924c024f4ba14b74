"""Data sets, encoders, seeds and the text forms people type."""

import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from edm2lite.dataset import open_dataset
from edm2lite.ema.decays import NamedDecay
from edm2lite.models.encoders import PixelEncoder, encoder_from_json
from edm2lite.seeding import Purpose, normals, rng
from edm2lite.tools._cli import COUNT
from edm2lite.training import load_config
from edm2lite.units import format_bytes, format_count, parse_count, parse_floats, parse_seeds


@pytest.fixture
def photos(tmp_path):
    """A folder of four 6x4 RGB images of classes 0 and 1."""
    folder = tmp_path / "photos"
    labels = []
    for i in range(4):
        name = f"{i % 2:05d}/img{i:08d}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 6, 3), 10 * i, np.uint8)).save(folder / name)
        labels.append([name, i % 2])
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder


def test_folder_and_zip_give_the_same_images(photos, tmp_path):
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in photos.rglob("*.*"):
            file.write(path, path.relative_to(photos))
    a, b = open_dataset(photos), open_dataset(archive)
    assert len(a) == len(b) == 4 and a.image_shape == b.image_shape == (3, 4, 6)
    assert a.label_dim == b.label_dim == 2
    np.testing.assert_array_equal(a.images(range(4)), b.images(range(4)))
    np.testing.assert_array_equal(a.images(range(4))[:, 0, 0, 0], [0, 20, 10, 30])
    np.testing.assert_array_equal(a.labels, [0, 0, 1, 1])


def test_damaged_image_is_named(photos):
    (photos / "00001" / "img00000003.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(ValueError, match="img00000003.png .*cannot be read"):
        open_dataset(photos).images(range(4))


def test_images_of_two_sizes_are_refused(photos):
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(photos / "00001" / "img00000003.png")
    with pytest.raises(ValueError, match="one size"):
        open_dataset(photos).images(range(4))


def test_missing_label_is_named(photos):
    (photos / "dataset.json").write_text(json.dumps({"labels": [["00000/img00000000.png", 0]]}))
    with pytest.raises(ValueError, match="img00000002.png and 2 others"):
        open_dataset(photos)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda p: p / "nothing", FileNotFoundError, "no data set at"),
        (lambda p: p, ValueError, "found none"),
        (lambda p: _file(p / "a.zip", b"no zip"), ValueError, "folder or a ZIP"),
    ],
)
def test_unreadable_data_sets_are_explained(tmp_path, make, error, message):
    with pytest.raises(error, match=message):
        open_dataset(make(tmp_path))


def _file(path, data):
    path.write_bytes(data)
    return path


def test_digits_are_whole():
    digits = open_dataset("digits")
    assert (len(digits), digits.image_shape, digits.label_dim) == (1797, (1, 8, 8), 10)
    images = digits.images(range(1797))
    assert images.dtype == np.uint8 and images.max() == 255


def test_pixels_survive_encoding_and_decoding():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    for encoder in (PixelEncoder(), PixelEncoder(shift=77.83, scale=191.79)):
        assert encoder.decode(encoder.encode(images)).equal(images)
        assert encoder_from_json(encoder.to_json()) == encoder
    x = PixelEncoder().encode(images)
    assert (x.min(), x.max()) == (-1, 1)


def test_decoding_rounds_and_clips():
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).reshape(1, 1, 1, 5)
    assert PixelEncoder().decode(x).flatten().tolist() == [0, 0, 128, 255, 255]


def test_the_digits_preset_standardizes_to_sigma_data():
    x = PixelEncoder(shift=77.83, scale=191.79).encode(
        torch.from_numpy(open_dataset("digits").images(range(1797)))
    )
    assert abs(x.mean().item()) < 1e-3 and x.std().item() == pytest.approx(0.5, abs=1e-3)


def test_unknown_encoder_is_refused():
    with pytest.raises(ValueError, match="kind must be one of pixels, latents, patches"):
        encoder_from_json('{"kind": "magic"}')


def test_noise_depends_on_seed_and_index_alone():
    generators = [rng(3, i, Purpose.TRAINING) for i in range(8)]
    together = normals(generators, (2, 4))
    alone = normals([rng(3, 5, Purpose.TRAINING)], (2, 4))
    assert together[5].equal(alone[0])
    others = [
        rng(4, 5, Purpose.TRAINING),
        rng(3, 5, Purpose.GENERATION),
        rng(3, 6, Purpose.TRAINING),
    ]
    assert not any(normals([g], (2, 4))[0].equal(alone[0]) for g in others)


def test_noise_is_standard_normal():
    values = normals([rng(0, i, Purpose.TRAINING) for i in range(2000)], (64,))
    assert abs(values.mean().item()) < 0.01 and values.std().item() == pytest.approx(1, abs=0.01)
    assert normals([rng(0, 0, Purpose.TRAINING)], ()).shape == (1,)


@pytest.mark.parametrize(
    "text, value",
    [
        ("8Mi", 8 * 2**20),
        ("128Ki", 131072),
        ("1.5Ki", 1536),
        ("7", 7),
        ("2Gi", 2**31),
        ("10k", 10**4),
        ("500K", 500_000),
        ("0.28B", 280_000_000),
        ("300G", 3 * 10**11),
        ("1.1T", 11 * 10**11),
        ("1e6", 10**6),
        ("2.5e3 k", 2_500_000),
        ("1_000", 1000),
        ("1Ti", 2**40),
    ],
)  # fmt: skip
def test_counts(text, value):
    assert parse_count(text) == value


@pytest.mark.parametrize("text", ["8m", "-3", "abc", "0.3", "", "1.0001k", "1e30", "k", "0x10"])
def test_what_is_no_count_comes_back(text):
    assert parse_count(text) == text


def test_every_option_and_field_that_counts_takes_the_same_units(tmp_path):
    """An option, a field of a configuration, the name of a model, and a length of a decay."""
    texts = ("64k", "64Ki", "0.064M", "6.4e4", "64000")
    counts = [64_000, 65_536, 64_000, 64_000, 64_000]
    assert [COUNT.convert(text, None, None) for text in texts] == counts
    found = [load_config("digits", ["batch_size=32", f"total_nimg={t}"]).total_nimg for t in texts]
    assert found == counts
    assert load_config("digits", ["optim.ref_batches=1.5k"]).optim.ref_batches == 1500
    assert load_config("digits", ["data.per_class=1k"]).data.per_class == 1000
    assert [NamedDecay.parse(f"cosine:{text}").length for text in texts] == counts


@pytest.mark.parametrize("count", [0, 1, 1000, 1023, 1024, 3 * 2**19, 8 * 2**20, 5 * 2**30, 2**40])
def test_a_count_is_read_as_it_was_written(count):
    assert parse_count(format_count(count)) == count
    assert len(format_count(count)) <= len(str(count))


def test_sizes_are_written_in_powers_of_ten():
    sizes = (0, 999, 1000, 1_234_567, 5_000_000_000, 2e15)
    assert [format_bytes(s) for s in sizes] == [
        "0 B",
        "999 B",
        "1 kB",
        "1.23 MB",
        "5 GB",
        "2e+03 TB",
    ]


def test_lists_of_numbers():
    assert parse_floats("0.05,0.10") == [0.05, 0.1]
    assert parse_floats("0.02:0.05:0.01") == [0.02, 0.03, 0.04, 0.05]
    assert parse_floats("0.01,0.1:0.2:0.05") == [0.01, 0.1, 0.15, 0.2]
    for bad in ("", "a", "1:2", "2:1:0.1", "1:2:0"):
        with pytest.raises(ValueError, match="must be"):
            parse_floats(bad)


def test_lists_of_seeds():
    assert parse_seeds("0-3,9,5-6") == [0, 1, 2, 3, 9, 5, 6]
    for bad in ("", "3-1", "a", "-5"):
        with pytest.raises(ValueError, match="must be a seed"):
            parse_seeds(bad)


@pytest.mark.parametrize("bad", ["0.1:inf:0.1", "nan", "-inf", "0:1:1e-300", "0:1e9:1"])
def test_lists_of_numbers_end(bad):
    with pytest.raises(ValueError, match="must be"):
        parse_floats(bad)


@pytest.mark.parametrize("bad", [str(2**64), str(2**63), "0-99999999999", "9" * 6000])
def test_lists_of_seeds_end(bad):
    with pytest.raises(ValueError, match="must be"):
        parse_seeds(bad)
