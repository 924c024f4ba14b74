"""``edm2lite dataset`` as a person types it: what it says, and how it explains mistakes."""

import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from edm2lite.dataset import open_dataset
from edm2lite.tools.edm2lite import main as edm2lite


def run(*words, code=0):
    result = CliRunner().invoke(edm2lite, ["dataset", *map(str, words)])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


@pytest.mark.parametrize("name", ["convert", "encode", "info", "verify", "preview"])
def test_every_command_has_help_with_an_example(name):
    assert f"edm2lite dataset {name}" in run(name, "--help")


def test_convert_says_what_became_of_the_images(photos, tmp_path):
    text = run("convert", photos, tmp_path / "a.zip", "--resolution", 200)
    assert "24 images of 200 x 200 in" in text and "cropping kept " in text
    assert "16 images were smaller and have been enlarged" in text  # those 160 and 180 pixels high
    shutil.copytree(photos, tmp_path / "photos")
    Image.new("RGB", (900, 100)).save(tmp_path / "photos" / "temple" / "wide.png")
    (tmp_path / "photos" / "temple" / "bad.png").write_bytes(b"no image")
    text = run(
        "convert", tmp_path / "photos", tmp_path / "b", "--resolution", 64, "--crop", "buckets",
        "--skip-damaged",
    )  # fmt: skip
    assert "24 images of" in text and "other sizes" in text
    assert "1 images fit no bucket and were left out: temple/wide.png" in text
    assert "left out: temple/bad.png in" in text


@pytest.mark.parametrize(
    "words, message",
    [
        (("nowhere", "a"), "there is no folder or ZIP nowhere"),
        (("PHOTOS", "a", "--crop", "buckets"), "buckets need a resolution"),
        (("PHOTOS", "PHOTOS", "--resolution", 8), "exists; remove it"),
    ],
)
def test_mistakes_in_converting_are_one_line(words, message, photos, tmp_path):
    words = [str(photos) if w == "PHOTOS" else w for w in words]
    output = run("convert", *words, code=1)
    assert output.startswith("Error: ") and message in output and output.count("\n") == 1


def test_info_of_pixels_names_the_encoder_that_standardizes_them(squares):
    text = run("info", squares)
    assert "24 images as pixels, 3 channels" in text and "size: 32 x 32" in text
    assert "classes: 2, with 12 to 12 images" in text
    images = open_dataset(squares).images(range(24)) / 127.5 - 1
    expected = f"mean {images.mean():.3f}, standard deviation {images.std():.3f}"
    assert expected in text
    shift, scale = 127.5 * (1 + images.mean()), 255 * images.std()
    assert f"encoder: {{shift: {shift:.2f}, scale: {scale:.2f}}}" in text


def test_info_of_latents_shows_that_they_are_standardized(latents, vae):
    text = run("info", latents)
    assert f"autoencoder: {vae.resolve()}, images of -1..1" in text
    rows = [line.split() for line in text.splitlines() if line[:1].isdigit()]
    rows = [row for row in rows if len(row) == 3]
    assert [row[0] for row in rows] == ["0", "1", "2", "3"]
    # one draw each of 24 latents of 64 correlated pixels
    assert all(abs(float(m)) < 0.05 and abs(float(s) - 0.5) < 0.05 for _, m, s in rows)


def test_info_of_latents_of_unknown_origin_gives_what_a_configuration_needs(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(50):
        array = np.full((4, 8, 8), 0.1, np.float32)  # two channels of means, two of deviations
        array[0] = rng.normal(3, 2, (8, 8))
        array[1] = rng.normal(-1, 0.5, (8, 8))
        np.save(tmp_path / f"{i:02d}.npy", array)
    text = run("info", tmp_path)
    assert "autoencoder: unknown; set encoder.vae" in text and "classes: none" in text
    rows = [line.split() for line in text.splitlines()][-2:]
    # standard errors over 3200 values are 0.035 and 0.025 in the first channel
    assert float(rows[0][1]) == pytest.approx(3, abs=0.1)
    assert float(rows[0][2]) == pytest.approx(np.hypot(2, 0.1), abs=0.08)
    assert float(rows[1][1]) == pytest.approx(-1, abs=0.03)


def test_odd_labels_are_noted_but_no_fault(photos, tmp_path):
    files = sorted(photos.rglob("*.jpg"))[:3]
    lines = [f"{file},{label}" for file, label in zip(files, ("5", "", "2"), strict=True)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]))
    run("convert", tmp_path / "list.csv", tmp_path / "a", "--resolution", 8)
    for command in ("info", "verify"):
        text = run(command, tmp_path / "a")
        assert "note: 1 images have no label" in text
        assert "note: 4 of 6 classes have no image" in text
    run("preview", tmp_path / "a", "--out", tmp_path / "sheet.png")
    (tmp_path / "list.jsonl").write_text(json.dumps({"path": str(files[0]), "label": [0.5, 2, 1]}))
    run("convert", tmp_path / "list.jsonl", tmp_path / "b", "--resolution", 8)
    assert "labels: vectors of 3 numbers" in run("info", tmp_path / "b")


def test_verify_names_everything_that_is_damaged_and_fails(photos, tmp_path):
    folder = tmp_path / "data"
    run("convert", photos, folder, "--resolution", 16)
    assert "24 images in" in run("verify", folder)
    names = open_dataset(folder).names
    (folder / names[3]).write_bytes((folder / names[3]).read_bytes()[:300])
    (folder / names[7]).write_bytes(b"")
    Image.new("RGB", (9, 9)).save(folder / names[8])
    output = run("verify", folder, code=1)
    for index in (3, 7, 8):
        assert f"{names[index]} " in output
    assert "3 problems found in the 24 images" in output


def test_verify_of_latents_finds_a_flipped_bit(latents, tmp_path):
    copy = shutil.copytree(latents, tmp_path / "copy")
    assert "24 images in" in run("verify", copy)
    data = bytearray((copy / "latents-00000.safetensors").read_bytes())
    data[-4000] ^= 2
    (copy / "latents-00000.safetensors").write_bytes(data)
    assert "latents-00000.safetensors holds other bytes" in run("verify", copy, code=1)


def test_preview_draws_pixels_latents_and_decoded_latents(squares, latents, tmp_path):
    sheets = {}
    for name, source, more in [
        ("pixels", squares, ()), ("colors", latents, ()), ("decoded", latents, ("--decode",)),
    ]:  # fmt: skip
        out = tmp_path / f"{name}.png"
        run("preview", source, "--num", 8, "--columns", 4, "--out", out, *more)
        with Image.open(out) as sheet:
            sheets[name] = np.asarray(sheet).astype(float)
    assert len({sheet.shape for sheet in sheets.values()}) == 1
    pixels, colors, decoded = sheets.values()
    # the same images in the same places: decoded ones are close, false colors are not
    assert np.abs(pixels - decoded).mean() < 30 < np.abs(pixels - colors).mean()
    first = open_dataset(squares).read(0)  # four-fold, in the first cell
    cells = [pixels[6:134:4, x : x + 128 : 4] for x in range(6, 4 * 134, 134)]
    images = open_dataset(squares).images(range(12)).transpose(0, 2, 3, 1)
    assert first.shape == (3, 32, 32)
    assert all(any((cell == image).all() for image in images) for cell in cells)


def test_preview_of_pixels_has_nothing_to_decode(squares, tmp_path):
    output = run("preview", squares, "--decode", "--out", tmp_path / "a.png", code=1)
    assert "--decode is for latents" in output and not (tmp_path / "a.png").exists()


def test_encode_explains_mistakes(squares, tmp_path):
    output = run("encode", squares, tmp_path / "a", "--vae", tmp_path, code=1)
    assert "has no config.json" in output and output.count("\n") == 1
    assert not (tmp_path / "a").exists()


@pytest.fixture(scope="module")
def one(squares, vae, tmp_path_factory):
    """What a single process makes, file by file."""
    folder = tmp_path_factory.mktemp("one") / "one"
    run("encode", squares, folder, "--vae", vae, "--shard", 5)
    return contents(folder)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_processes_of_torchrun_share_the_work(one, squares, vae, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, files in ((1, {"latents-00001.safetensors", "latents-00003.safetensors"}), (0, one)):
        monkeypatch.setenv("RANK", str(rank))
        run("encode", squares, tmp_path / "two", "--vae", vae, "--shard", 5)
        assert {path.name for path in (tmp_path / "two").iterdir()} == set(files)
    assert contents(tmp_path / "two") == one


@pytest.mark.slow
def test_killed_and_continued_gives_the_same_data_set(one, squares, vae, tmp_path):
    words = ["encode", str(squares), str(tmp_path / "a"), "--vae", str(vae), "--shard", "5"]
    command = [sys.executable, "-m", "edm2lite.tools.edm2lite", "dataset", *words]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob("a/latents-*")) and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.wait()
    run(*words)
    assert contents(tmp_path / "a") == one
