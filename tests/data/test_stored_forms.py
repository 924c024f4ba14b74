"""What can be opened, what labels may look like, and what is refused by name."""

import io
import json
import os
import stat
import zipfile

import numpy as np
import pytest
from PIL import Image

from edm2lite.dataset import open_dataset
from edm2lite.dataset.files import open_files
from edm2lite.models.encoders import EDM2_LATENTS


def png(value, size=(6, 4), mode="RGB"):
    buffer = io.BytesIO()
    color = value if mode == "L" else (value, 0, 255 - value)
    Image.new(mode, size, color).save(buffer, "PNG")
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def archive(path, entries):
    with zipfile.ZipFile(path, "w") as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return path


def labeled(path, labels, **more):
    """A ZIP of one image per label."""
    names = [f"00000/img{i:08d}.png" for i in range(len(labels))]
    entries = {name: png(i) for i, name in enumerate(names)}
    table = {"labels": [list(pair) for pair in zip(names, labels, strict=True)], **more}
    return archive(path, {**entries, "dataset.json": json.dumps(table)})


@pytest.mark.parametrize(
    "labels, more, values, label_dim",
    [
        ([0, 2, 1], {}, [0, 2, 1], 3),
        ([0, 2, 1], {"label_dim": 5}, [0, 2, 1], 5),
        ([1, None, -1], {"classes": ["a", "b", "c"]}, [1, -1, -1], 3),
        ([[0, 1, 0], [1, 0, 0], [0, 1, 0]], {}, [1, 0, 1], 3),
        ([[0.5, 2.0], [1, 0], [0, -3]], {}, [[0.5, 2], [1, 0], [0, -3]], 2),
    ],
)
def test_label_formats(labels, more, values, label_dim, tmp_path):
    dataset = open_dataset(labeled(tmp_path / "a.zip", labels, **more))
    np.testing.assert_array_equal(dataset.labels, np.array(values))
    assert dataset.label_dim == label_dim
    assert dataset.labels.dtype == (np.float32 if dataset.labels.ndim == 2 else np.int64)


@pytest.mark.parametrize(
    "labels, more, message",
    [
        (["cat", 1], {}, "must be class indices .* got 'cat'"),
        ([1.5, 1], {}, "got 1.5"),
        ([True, 1], {}, "got True"),
        ([-2, 1], {}, "got -2"),
        ([None, None], {}, "at least one"),
        ([[1, 0], [1, 0, 0]], {}, "of one length"),
        ([[1, 0], 3], {}, "of one length"),
        ([[1, float("nan")], [1, 0]], {}, "NaN is not a finite number"),
        ([0, 7], {"classes": ["a", "b"]}, "below its number of classes, 2, got 7"),
    ],
)
def test_labels_that_make_no_sense_are_named(labels, more, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_dataset(labeled(tmp_path / "a.zip", labels, **more))


@pytest.mark.parametrize("text", ["[1, 2]", "{", '{"labels": 3}', '{"labels": [["a"]]}'])
def test_a_broken_table_is_explained(text, tmp_path):
    path = archive(tmp_path / "a.zip", {"a.png": png(1), "dataset.json": text})
    with pytest.raises(ValueError, match="dataset.json in .*a.zip must "):
        open_dataset(path)


def test_arrays_of_bytes_are_pixels(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 5, 7), dtype=np.uint8)
    path = archive(tmp_path / "a.zip", {f"{i}.npy": npy(x) for i, x in enumerate(images)})
    dataset = open_dataset(path)
    assert dataset.image_shape == (1, 5, 7) and dataset.encoder is None
    np.testing.assert_array_equal(dataset.images(range(3)), images)


def test_the_latents_of_the_edm2_paper_work_as_they_are(tmp_path, caplog):
    latents = np.random.default_rng(0).normal(size=(2, 8, 6, 6)).astype(np.float32)
    names = [f"00000/img-mean-std-{i:08d}.npy" for i in range(2)]
    table = json.dumps({"labels": [[names[1], 7], [names[0], 3]]})
    entries = {n: npy(x) for n, x in zip(names, latents, strict=True)}
    dataset = open_dataset(archive(tmp_path / "a.zip", {**entries, "dataset.json": table}))
    assert dataset.image_shape == (4, 6, 6) and dataset.stored_shape == (8, 6, 6)
    assert dataset.labels.tolist() == [3, 7] and dataset.encoder == EDM2_LATENTS
    np.testing.assert_array_equal(dataset.images([1, 0]), latents[::-1])
    assert "taken for those of the EDM2 paper" in caplog.text


def test_latents_of_other_channels_do_not_get_a_guess(tmp_path):
    path = archive(tmp_path / "a.zip", {"0.npy": npy(np.ones((32, 4, 4), np.float32))})
    dataset = open_dataset(path)
    assert dataset.image_shape == (16, 4, 4) and dataset.encoder.mean == ()


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"0.npy": npy(np.ones((7, 4, 4), np.float32))}, "0.npy .* got 7 channels"),
        ({"0.npy": npy(np.ones((4, 4), np.float32))}, r"0.npy .* got \[4, 4\]"),
        ({"0.npy": npy(np.ones((1, 4, 4), np.int64))}, "got .* int64"),
        ({"0.npy": npy(np.array([[[None]]]))}, "0.npy .* anything but numbers"),
        ({"0.npy": npy(np.ones((8, 4, 4), np.float32))[:-9]}, "0.npy .* holds 503 bytes"),
        ({"0.npy": npy(np.ones((8, 4, 4), np.float32)), "1.png": png(1)}, "it has both"),
        ({"readme.txt": b"hello"}, "found none"),
    ],
)
def test_arrays_that_are_no_images_are_named(entries, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_dataset(archive(tmp_path / "a.zip", entries))


def test_later_damage_is_named_when_it_is_met(tmp_path):
    good = np.ones((8, 4, 4), np.float32)
    bad = good.copy()
    bad[2, 1, 1] = np.nan
    entries = {"0.npy": npy(good), "1.npy": npy(bad), "2.npy": npy(good[:, :2])}
    dataset = open_dataset(archive(tmp_path / "a.zip", entries))
    with pytest.raises(ValueError, match="1.npy in .* must hold finite latents"):
        dataset.read(1)
    with pytest.raises(ValueError, match="of one shape, 2.npy is .8, 2, 4."):
        dataset.read(2)


def test_gray_among_color_is_named(tmp_path):
    dataset = open_dataset(
        archive(tmp_path / "a.zip", {"0.png": png(1), "1.png": png(1, mode="L")})
    )
    with pytest.raises(ValueError, match=r"1.png is \(1, 4, 6\) where 0.png is \(3, 4, 6\)"):
        dataset.images([0, 1])


def test_a_truncated_zip_is_explained(tmp_path):
    path = archive(tmp_path / "a.zip", {f"{i}.png": png(i) for i in range(20)})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="if the ZIP was cut short, copy it again"):
        open_dataset(path)


def test_a_damaged_entry_is_named(tmp_path):
    path = archive(tmp_path / "a.zip", {f"{i}.png": png(i) for i in range(3)})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        data[file.getinfo("1.png").header_offset + 60] ^= 255
    path.write_bytes(data)
    dataset = open_dataset(path)
    with pytest.raises(ValueError, match="1.png in .* cannot be read .*CRC"):
        dataset.read(1)


@pytest.mark.parametrize(
    "name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:\\evil.png", "..\\evil.png"]
)
def test_entries_that_lead_out_of_an_archive_are_refused(name, tmp_path):
    path = archive(tmp_path / "a.zip", {"good.png": png(1), name: png(2)})
    with pytest.raises(ValueError, match="leads out of the archive"):
        open_dataset(path)


def test_links_in_an_archive_are_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match="leads out of the archive"):
        open_files(path)


def test_links_are_followed_but_not_in_a_circle(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a.png").write_bytes(png(3))
    data = tmp_path / "data"
    data.mkdir()
    (data / "class").symlink_to(tmp_path / "store")
    assert open_dataset(data).names == ["class/a.png"]
    (data / "again").symlink_to(data)
    with pytest.raises(ValueError, match="again is a symbolic link to a folder that it lies in"):
        open_dataset(data)
    (data / "again").unlink()
    (data / "self").symlink_to(data / "self")
    with pytest.raises(ValueError, match="data/self cannot be followed"):
        open_dataset(data)


def test_a_broken_link_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(png(3))
    (tmp_path / "b.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match="b.png must be a file .* link to nothing"):
        open_dataset(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(png(3))
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(ValueError, match="a.png in .* cannot be read .Permission denied"):
        open_dataset(tmp_path)


def test_what_systems_add_to_archives_and_folders_is_passed_over(tmp_path):
    path = archive(tmp_path / "a.zip", {"a.png": png(1), "__MACOSX/._a.png": b"", "b/.c.png": b""})
    assert open_dataset(path).names == ["a.png"]
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.png").write_bytes(b"")
    (tmp_path / "a.png").write_bytes(png(1))
    assert open_dataset(tmp_path).names == ["a.png"]


def test_sizes_in_the_table_are_kept(tmp_path):
    sizes = [(4, 6), (8, 2)]
    entries = {f"{i}.png": png(i, size=(w, h)) for i, (h, w) in enumerate(sizes)}
    table = {"labels": None, "sizes": [["0.png", 4, 6], ["1.png", 8, 2]]}
    dataset = open_dataset(
        archive(tmp_path / "a.zip", {**entries, "dataset.json": json.dumps(table)})
    )
    assert dataset.sizes.tolist() == [[4, 6], [8, 2]] and dataset.labels is None
    assert dataset.read(1).shape == (3, 8, 2)
    table["sizes"][1] = ["1.png", 8, 3]
    wrong = archive(tmp_path / "b.zip", {**entries, "dataset.json": json.dumps(table)})
    with pytest.raises(ValueError, match=r"1.png in .* must be \(3, 8, 3\)"):
        open_dataset(wrong).read(1)
    table["sizes"].pop()
    missing = archive(tmp_path / "c.zip", {**entries, "dataset.json": json.dumps(table)})
    with pytest.raises(ValueError, match="sizes in .* cover every image, 1.png"):
        open_dataset(missing)
