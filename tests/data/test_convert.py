"""Photos of any kind to data sets: pixels against NumPy, labels by hand, nothing half-written."""

import csv
import gzip
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from edm2lite.dataset import open_dataset
from edm2lite.dataset.collection import open_collection
from edm2lite.dataset.conversion import Conversion
from edm2lite.dataset.convert import convert_images


def converted(source, dest, **options):
    report = convert_images(open_collection(source), dest, Conversion(**options))
    return open_dataset(dest), report


def left_behind(folder):
    return sorted(p.name for p in folder.iterdir())


def test_folders_become_classes_in_a_zip_and_in_a_folder_alike(photos, tmp_path):
    a, report = converted(photos, tmp_path / "a.zip", resolution=32)
    b, _ = converted(photos, tmp_path / "b", resolution=32)
    assert (len(a), a.image_shape, a.label_dim) == (24, (3, 32, 32), 2)
    assert a.table.classes == ("flower", "temple") and a.labels.tolist() == [0] * 12 + [1] * 12
    np.testing.assert_array_equal(a.images(range(24)), b.images(range(24)))
    assert report.damaged == report.misfits == [] and report.enlarged == 0
    assert left_behind(tmp_path) == ["a.zip", "b"]


def test_the_stored_form_is_that_of_the_edm_family(photos, tmp_path):
    converted(photos, tmp_path / "a.zip", resolution=32)
    with zipfile.ZipFile(tmp_path / "a.zip") as file:
        assert all(info.compress_type == zipfile.ZIP_STORED for info in file.infolist())
        names = sorted(n for n in file.namelist() if n.endswith(".png"))
        assert names[:2] == ["00000/img00000000.png", "00000/img00000001.png"]
        table = json.loads(file.read("dataset.json"))
        assert table["labels"][13] == ["00000/img00000013.png", 1]
        # rows of 1 + 3 * 32 bytes and little around them: not compressed
        assert file.getinfo(names[0]).file_size > 32 * 97


def test_the_same_source_gives_the_same_bytes(photos, tmp_path):
    converted(photos, tmp_path / "a.zip", resolution=16)
    converted(photos, tmp_path / "b.zip", resolution=16)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_dhariwal_halves_by_means_of_two_by_two(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    dataset, _ = converted(tmp_path / "in", tmp_path / "a", resolution=16, transform="dhariwal")
    expected = pixels.astype(np.float64)
    for _ in range(2):  # 64 to 32 to 16
        h, w, _ = expected.shape
        expected = expected.reshape(h // 2, 2, w // 2, 2, 3).mean((1, 3))
    # both directions of both stages are rounded to whole values: at most half a step each
    np.testing.assert_allclose(dataset.read(0).transpose(1, 2, 0), expected[:, 2:18], atol=2)
    lanczos, _ = converted(tmp_path / "in", tmp_path / "b", resolution=16)
    assert np.abs(lanczos.read(0).transpose(1, 2, 0) - expected[:, 2:18]).max() > 10


def test_the_middle_is_cut_out(tmp_path):
    pixels = np.zeros((8, 20, 3), np.uint8)
    pixels[:, 6:14] = 200
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    dataset, report = converted(tmp_path / "in", tmp_path / "a", resolution=8)
    assert (dataset.read(0) == 200).all() and report.kept == [pytest.approx(0.4)]


def test_without_cropping_the_shorter_side_fits_and_sizes_are_recorded(photos, tmp_path):
    dataset, report = converted(photos, tmp_path / "a.zip", resolution=40, crop="none")
    assert (dataset.sizes.min(axis=1) == 40).all() and len(set(report.sizes)) > 3
    assert all(dataset.read(i).shape == (3, *dataset.sizes[i]) for i in range(24))


def test_buckets_keep_nearly_everything(photos, tmp_path):
    _, by_square = converted(photos, tmp_path / "a.zip", resolution=64)
    bucketed, by_bucket = converted(photos, tmp_path / "b.zip", resolution=64, crop="buckets")
    assert np.mean(by_bucket.kept) > 0.93 > 0.75 > np.mean(by_square.kept)
    assert (bucketed.sizes % 8 == 0).all() and (bucketed.sizes.prod(1) <= 1.5 * 64**2).all()


def test_an_image_that_fits_no_bucket_is_named_and_left_out(tmp_path):
    (tmp_path / "in").mkdir()
    for name, size in (("wide", (400, 20)), ("good", (64, 64))):
        Image.new("RGB", size).save(tmp_path / "in" / f"{name}.png")
    dataset, report = converted(tmp_path / "in", tmp_path / "a", resolution=64, crop="buckets")
    assert len(dataset) == 1 and report.misfits == ["wide.png"]


def test_mirror_images_follow_their_images(photos, tmp_path):
    dataset, _ = converted(photos, tmp_path / "a", resolution=16, mirror=True)
    assert len(dataset) == 48 and dataset.labels.tolist() == [0] * 24 + [1] * 24
    images = dataset.images(range(48))
    np.testing.assert_array_equal(images[::2], images[1::2, :, :, ::-1])


def test_pictures_stand_upright_on_white(tmp_path):
    (tmp_path / "in").mkdir()
    photo = Image.new("RGB", (8, 4), "black")
    photo.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise: the top left corner goes to the top right
    photo.save(tmp_path / "in" / "a.png", exif=exif)
    Image.new("RGBA", (4, 8), (10, 20, 30, 0)).save(tmp_path / "in" / "b.png")
    dataset, _ = converted(tmp_path / "in", tmp_path / "out", crop="none")
    assert dataset.image_shape == (3, 8, 4)
    assert dataset.read(0)[:, 0, 3].tolist() == [255] * 3 and dataset.read(0).sum() == 3 * 255
    assert (dataset.read(1) == 255).all()


def test_gray_is_one_channel_if_asked_for(photos, tmp_path):
    dataset, _ = converted(photos, tmp_path / "a", resolution=8, gray=True)
    assert dataset.image_shape == (1, 8, 8)


@pytest.mark.parametrize(
    "labels, values, classes",
    [
        (["3", "0", ""], [3, 0, -1], ()),
        (["dog", "cat", "dog"], [1, 0, 1], ("cat", "dog")),
        (["", "", ""], None, ()),
    ],
)
def test_lists_of_paths(labels, values, classes, photos, tmp_path):
    paths = sorted(photos.rglob("*.jpg"))[:3]
    with open(tmp_path / "list.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        rows.writerows([p, label] for p, label in zip(paths, labels, strict=True))
    dataset, _ = converted(tmp_path / "list.csv", tmp_path / "a", resolution=8)
    assert values == (None if dataset.labels is None else dataset.labels.tolist())
    assert dataset.table is None or dataset.table.classes == classes


def test_json_lines_may_hold_vectors(photos, tmp_path):
    (tmp_path / "a.jpg").write_bytes(next(photos.rglob("*.jpg")).read_bytes())
    rows = [{"path": "a.jpg", "label": [0.5, i]} for i in range(2)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    dataset, _ = converted(tmp_path / "list.jsonl", tmp_path / "a", resolution=8)
    np.testing.assert_array_equal(dataset.labels, [[0.5, 0], [0.5, 1]])


@pytest.mark.parametrize(
    "text, message",
    [
        ("file,label\na.jpg,1\n", "must have a column .or key. path"),
        ("path,label\n", "must have a column"),
        ("path,label\nnone.jpg,1\n", "none.jpg in .*list.csv does not exist"),
    ],
)
def test_mistakes_in_lists_are_explained(text, message, tmp_path):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        converted(tmp_path / "list.csv", tmp_path / "a", resolution=8)
    assert left_behind(tmp_path) == ["list.csv"]


CIFAR = np.random.default_rng(0).integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)


def cifar(folder, binary, protocol=2):
    """Five batches of two images each, as the archives have them."""
    folder.mkdir(parents=True)
    for i in range(5):
        data = CIFAR[2 * i : 2 * i + 2].reshape(2, 3072)
        labels = [i, 9 - i]
        if binary:
            rows = np.concatenate([np.array(labels, np.uint8)[:, None], data], axis=1)
            (folder / f"data_batch_{i + 1}.bin").write_bytes(rows.tobytes())
        else:
            content = {b"batch_label": b"x", b"labels": labels, b"data": data, b"filenames": [b"y"]}
            written = pickle.dumps(content, protocol=protocol)
            (folder / f"data_batch_{i + 1}").write_bytes(written)
    return folder


@pytest.mark.parametrize("form", ["python", "binary", "archive"])
def test_cifar(form, tmp_path):
    source = tmp_path / "data" / f"cifar-10-batches-{'bin' if form == 'binary' else 'py'}"
    cifar(source, form == "binary")
    if form == "archive":
        with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as file:
            file.add(source, source.name)
        source = tmp_path / "cifar-10-python.tar.gz"
    else:
        source = source.parent
    dataset, _ = converted(source, tmp_path / "a.zip", resolution=32)
    np.testing.assert_array_equal(dataset.images(range(10)), CIFAR)
    assert dataset.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]


def test_cifar_as_python_2_wrote_it(tmp_path):
    """The archives on the net have byte strings where Python 3 writes others."""
    folder = cifar(tmp_path / "c", binary=False, protocol=4)
    data = CIFAR[:2].tobytes()
    text = (
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x01xU\x06labelsq\x03]q\x04(K\x06K\x09eU\x04dataq\x05"
        b"cnumpy.core.multiarray\n_reconstruct\nq\x06cnumpy\nndarray\nq\x07K\x00\x85U\x01b\x87Rq\x08"
        b"(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nq\x09U\x02u1K\x00K\x01\x87Rq\x0a(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89T" + len(data).to_bytes(4, "little") + data + b"tbu."
    )
    expected = pickle.loads(text, encoding="bytes")
    np.testing.assert_array_equal(expected[b"data"], CIFAR[:2].reshape(2, 3072))
    (folder / "data_batch_1").write_bytes(text)
    source = open_collection(folder)
    np.testing.assert_array_equal(np.asarray(source.load(1)), CIFAR[1].transpose(1, 2, 0))
    assert source.table.values[:4].tolist() == [6, 9, 1, 8]


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_nothing_in_a_pickle_is_executed(tmp_path):
    folder = cifar(tmp_path / "c", binary=False)
    whole = (folder / "data_batch_1").read_bytes()
    (folder / "data_batch_1").write_bytes(whole[:-2000])
    with pytest.raises(ValueError, match="data_batch_1 must be a batch of CIFAR-10"):
        open_collection(folder)
    (folder / "data_batch_1").write_bytes(whole)
    (folder / "data_batch_2").write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(ValueError, match="data_batch_2 must be a batch of CIFAR-10 .*0 labels"):
        open_collection(folder)


def test_mnist(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)
    sizes = b"".join(n.to_bytes(4, "big") for n in (4, 28, 28))
    packed = gzip.compress(b"\0\0\x08\x03" + sizes + images.tobytes())
    (raw / "t10k-images-idx3-ubyte.gz").write_bytes(packed)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x04\x07\x02\x01\x00")
    convert_images(open_collection(tmp_path, "test"), tmp_path / "a", Conversion(resolution=28))
    dataset = open_dataset(tmp_path / "a")
    np.testing.assert_array_equal(dataset.images(range(4))[:, 0], images)
    assert dataset.labels.tolist() == [7, 2, 1, 0]
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        open_collection(tmp_path)
    (raw / "t10k-images-idx3-ubyte.gz").write_bytes(packed[:-100])
    with pytest.raises(ValueError, match="is damaged"):
        open_collection(tmp_path, "test")


@pytest.fixture
def damaged(photos, tmp_path):
    """Two good photos and one that was cut short."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    for name in ("a", "b", "c"):
        data = next(photos.rglob("*.jpg")).read_bytes()
        (folder / f"{name}.jpg").write_bytes(data[: len(data) // 2] if name == "b" else data)
    return folder


@pytest.mark.parametrize("dest", ["out", "out.zip"])
def test_a_damaged_photo_is_named_and_nothing_is_left_behind(damaged, dest, tmp_path):
    with pytest.raises(ValueError, match="b.jpg in .* cannot be read as an image"):
        converted(damaged, tmp_path / dest, resolution=8)
    assert left_behind(tmp_path) == ["damaged"]


def test_damaged_photos_can_be_skipped(damaged, tmp_path):
    dataset, report = converted(damaged, tmp_path / "a", resolution=8, skip_damaged=True)
    assert len(dataset) == 2 and "b.jpg" in report.damaged[0] and len(report.damaged) == 1


def test_more_than_eight_bits_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "in" / "deep.png")
    with pytest.raises(ValueError, match="deep.png in .* more than 8 bits"):
        converted(tmp_path / "in", tmp_path / "a", resolution=4)


def test_nothing_is_overwritten(photos, tmp_path):
    (tmp_path / "a.zip").write_bytes(b"mine")
    with pytest.raises(ValueError, match="a.zip exists; remove it"):
        converted(photos, tmp_path / "a.zip", resolution=8)
    assert (tmp_path / "a.zip").read_bytes() == b"mine"


def test_half_of_the_images_in_folders_is_explained(photos, tmp_path):
    (tmp_path / "in" / "cat").mkdir(parents=True)
    data = next(photos.rglob("*.jpg")).read_bytes()
    (tmp_path / "in" / "cat" / "a.jpg").write_bytes(data)
    (tmp_path / "in" / "b.jpg").write_bytes(data)
    with pytest.raises(ValueError, match="b.jpg and 0 others lie in no folder"):
        open_collection(tmp_path / "in")
    assert open_collection(tmp_path / "in", labeled=False).table is None


def test_a_folder_round_everything_is_no_class(photos, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for path in photos.rglob("*.jpg"):
            file.write(path, "download/photos/" + path.relative_to(photos).as_posix())
    assert open_collection(tmp_path / "a.zip").table.classes == ("flower", "temple")


def test_an_empty_folder_and_nothing_are_explained(tmp_path):
    with pytest.raises(ValueError, match="must hold images .* found none"):
        open_collection(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder or ZIP .*nowhere"):
        open_collection(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="buckets need a resolution"):
        Conversion(crop="buckets")
