"""Folders and ZIP files of generated images: continued, extended, refused."""

import json
import zipfile

from sampling.generating import fail, files, save_net, succeed

from edm2lite.dataset import open_dataset
from edm2lite.models.loading import load
from edm2lite.sampling.image_folder import ImageFolder
from edm2lite.sampling.images import ImageGenerator


def test_waiting_ends_with_the_last_image(tmp_path, monkeypatch):
    folder, heard = ImageFolder(tmp_path / "a"), []
    folder.open({}, [1, 2, 3])

    def one_more(seconds):
        (tmp_path / "a/000000").mkdir(exist_ok=True)
        (tmp_path / f"a/000000/{len(heard):06d}.png").write_bytes(b"x")

    monkeypatch.setattr("time.sleep", one_more)
    folder.wait([1, 2, 3], heard.append)
    assert sum(heard) == 3 and len(heard) == 4


def test_what_a_killed_process_left_unfinished_is_removed(names, tmp_path):
    options = (names[0], "--seeds", "0-2", "--steps", 1, "--out", tmp_path / "a")
    succeed(*options)
    before = files(tmp_path / "a")
    (tmp_path / "a/000000/.000001.png.0a1b2c3d.partial").write_bytes(b"half")
    succeed(*options)
    assert files(tmp_path / "a") == before


def test_a_zip_holds_what_the_folder_would_and_grows(names, tmp_path):
    common = (names[0], "--steps", 2)
    succeed(*common, "--seeds", "0-19", "--out", tmp_path / "folder")
    succeed(*common, "--seeds", "10-19", "--out", tmp_path / "a.zip")
    with open(tmp_path / "a.zip", "rb") as file:
        before = file.read()
    succeed(*common, "--seeds", "10-19", "--out", tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == before
    succeed(*common, "--seeds", "0-12", "--out", tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert {n: archive.read(n) for n in archive.namelist()} == files(tmp_path / "folder")
    assert not (tmp_path / "a.zip.parts").exists()
    assert open_dataset(tmp_path / "a.zip").num_images == 20


def test_other_settings_are_refused_and_leave_the_folder_as_it_is(names, tmp_path):
    out = tmp_path / "a"
    common = (names[0], "--out", out, "--seeds", "0-3")
    succeed(*common, "--steps", 2, "--class", 3)
    before = files(out)
    assert "num_steps (2, now 3)" in fail(*common, "--steps", 3, "--class", 3)
    assert "solver (default, now" in fail(*common, "--steps", 2, "--solver", "euler")
    assert "as class 3" in fail(*common, "--steps", 2, "--class", 4)
    assert "weights" in fail(names[1], *common[1:], "--steps", 2, "--class", 3)
    line = fail(*common, "--steps", 2, "--class", 3, "--guide", names[1], "--guidance", 2)
    assert "guide (default, now" in line and "guidance (default, now 2.0)" in line
    assert files(out) == before
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("")
    assert "must be free or hold generated images" in fail(
        names[0], "--seeds", 0, "--out", tmp_path / "b"
    )
    (tmp_path / "c.zip").write_text("no")
    assert "is not a ZIP file" in fail(names[0], "--seeds", 0, "--out", tmp_path / "c.zip")
    assert "is a file" in fail(names[0], "--seeds", 0, "--out", tmp_path / "b" / "thesis.tex")
    assert "seeds must be unique, got duplicates" in fail(
        names[0], "--seeds", "0,1,0", "--out", tmp_path / "d"
    )


def test_generation_continues_after_an_interruption(names, tmp_path):
    model, out = names[0], tmp_path / "a"
    common = (model, "--class", "all", "--steps", 2, "--out", out)
    succeed(*common, "--seeds", "0-39")
    whole = files(out)
    assert len(whole) == 42
    for seed in (3, 17):
        (out / f"000000/{seed:06d}.png").unlink()
    (out / "000000/000030.png").write_bytes(b"")  # what a power cut may leave
    (out / "000000/.000017.png.0-1.partial").write_bytes(b"half")
    times = {p: p.stat().st_mtime_ns for p in out.rglob("0*.png")}
    succeed(*common, "--seeds", "0-39", "--batch", 1)
    assert files(out) == whole
    changed = {p.name for p in out.rglob("0*.png") if p.stat().st_mtime_ns != times.get(p)}
    assert changed == {"000003.png", "000017.png", "000030.png"}
    dataset = open_dataset(out)
    assert dataset.labels.tolist() == list(range(10)) * 4 and dataset.image_shape == (1, 8, 8)


def test_a_folder_of_version_0_1_continues(tmp_path):
    """There the unconditional guide was called unlabelled, and is still on the command line."""
    out, path = tmp_path / "a", save_net(tmp_path / "net.safetensors")
    common = (path, "--steps", 2, "--guidance", 2, "--out", out)
    succeed(*common, "--guide", "unlabelled", "--seeds", "0-2")
    path = out / "settings.json"
    settings = json.loads(path.read_text())
    assert settings["guide"] == "unconditional"
    path.write_text(json.dumps({**settings, "guide": "unlabelled"}))
    succeed(*common, "--guide", "unconditional", "--seeds", "0-4")
    assert len(list(out.rglob("*.png"))) == 5
    path.write_text(json.dumps({**settings, "guide": "a1b2"}))
    assert "guide (" in fail(*common, "--guide", "unconditional", "--seeds", "0-4")


def test_a_folder_of_compiled_networks_says_so_as_in_version_0_1(names):
    model = load(names[0])
    assert ImageGenerator(model, [0], compiled=True).settings["compile"] is True
    assert "compile" not in ImageGenerator(model, [0]).settings
