"""The command ``edm2lite generate``."""

import json

from PIL import Image
from sampling.generating import fail, files, on_two_ranks, succeed

from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.network.unet import UNetConfig


def test_processes_share_the_seeds_and_the_folder(run_dir, names, tmp_path):
    common = (names[0], "--seeds", "0-69", "--steps", 2, "--guide", names[1], "--guidance", 2)
    succeed(*common, "--out", tmp_path / "one.zip")
    said = on_two_ranks(*common, "--out", tmp_path / "two.zip", "--grid", tmp_path / "grid.png")
    assert "70 images in" in said[0] and said[1] == ""
    assert (tmp_path / "two.zip").read_bytes() == (tmp_path / "one.zip").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"one.zip", "two.zip", "grid.png"}


def test_every_model_gets_a_row(run_dir, names, tmp_path):
    models = [str(run_dir), f"{run_dir}@sigma_rel=0.05", names[0]]
    grid = tmp_path / "grid.png"
    succeed(
        *models, "--seeds", "0-3", "--class", "all", "--steps", 2, "--out", tmp_path / "images",
        "--grid", grid,
    )  # fmt: skip
    assert len(list((tmp_path / "images").iterdir())) == 3
    with Image.open(grid) as picture:
        assert picture.size[0] > picture.size[1]
    assert "different names" in fail(names[0], names[0], "--out", tmp_path / "x")


def test_intervals_are_noise_levels_or_steps(names, tmp_path):
    guide = ("--guide", names[1], "--guidance", 2, "--seeds", 0)
    output = succeed(names[0], *guide, "--interval", "0.28,2.90", "--out", tmp_path / "a")
    assert "steps 15-21" in output and "(0.283, 2.902]" in output
    succeed(names[0], *guide, "--interval", "15-21", "--out", tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    settings = json.loads((tmp_path / "a" / "settings.json").read_text())
    assert settings["interval"] == [15, 21] and settings["guidance"] == 2 and settings["rows"] == 64
    line = fail(names[0], *guide, "--interval", "15-32", "--out", tmp_path / "c")
    assert "0 to 31, got 15 to 32" in line
    assert "two noise levels" in fail(
        names[0], *guide, "--interval", "2.9", "--out", tmp_path / "c", code=2
    )
    assert not (tmp_path / "c").exists()


def test_mistakes_are_explained_before_anything_is_written(run_dir, names, tmp_path):
    out = ("--out", tmp_path / "x", "--seeds", "0")
    assert "0 to 9" in fail(run_dir, "--class", 10, *out)
    assert "must be one of the 10 classes of" in fail(run_dir, "--class", "cat", *out)
    assert "no model at" in fail(tmp_path / "nothing", *out)
    assert "no model at" in fail(run_dir, "--guide", tmp_path / "no", "--guidance", 2, *out)
    assert "seed or a range" in fail(run_dir, "--out", tmp_path / "x", "--seeds", "9-1", code=2)
    assert "go together" in fail(run_dir, "--guide", names[1], *out, code=2)
    assert "go together" in fail(run_dir, "--guidance", 2, *out, code=2)
    assert "either MODEL" in fail(*out, code=2)
    assert "leave out --steps" in fail(run_dir, "--sigmas", "9,1", "--steps", 3, *out, code=2)
    assert "must decrease" in fail(run_dir, "--sigmas", "1,9", *out)
    assert "belong to --apg" in fail(run_dir, "--apg-norm", 3, *out, code=2)
    assert "other than 1" in fail(run_dir, "--rescale", 0.7, *out)
    assert "solver euler takes no S_churn, got 3.0" in fail(
        run_dir, "--churn", 3, "--solver", "euler", *out
    )
    assert "cannot begin at sigma = infinity" in fail(run_dir, "--sigmas", "inf,9,1", *out)
    assert not (tmp_path / "x").exists()
    line = fail(names[0], "--guide", names[0], "--guidance", 2, *out)
    assert "has the same weights" in line


def test_a_model_file_with_nan_is_refused(tmp_path):
    net = Precond(PrecondConfig(backbone=UNetConfig(
        img_resolution=8, img_channels=1, model_channels=16, channel_mult=(1,), num_blocks=1,
        attn_resolutions=(), head_channels=16,
    )))  # fmt: skip
    net.backbone.out_gain.data.fill_(float("nan"))
    path = net.save(tmp_path / "net.safetensors")
    assert "finite weights, unet.out_gain" in fail(path, "--out", tmp_path / "x")
