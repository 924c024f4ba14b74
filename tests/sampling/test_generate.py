"""Generated images: functions of seed, class and settings alone, to the last bit; the command."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from edm2lite.dataset import open_dataset
from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.models.encoders import PixelEncoder
from edm2lite.models.loading import load
from edm2lite.network.conditioning import ClassLabel, Conditioning
from edm2lite.network.unet import UNetConfig
from edm2lite.sampling.generate import Generator
from edm2lite.sampling.guidance import APG
from edm2lite.sampling.image_folder import ImageFolder
from edm2lite.sampling.recipes import RECIPES, recipe
from edm2lite.sampling.settings import Sampling
from edm2lite.threads import map_in_threads
from edm2lite.tools.edm2lite import main as edm2lite


def run(*arguments):
    return CliRunner().invoke(edm2lite, ["generate", *map(str, arguments)])


def succeed(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def fail(*arguments, code=1):
    result = run(*arguments)
    assert result.exit_code == code, result.output
    line = result.output.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    return line


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


class Raw(PixelEncoder):
    """Leaves what the sampler made as it is, so that a test sees every bit."""

    def decode(self, x):
        return x


def raw(spec):
    return dataclasses.replace(load(spec), encoder=Raw())


def images(model, seeds, **options):
    return torch.cat([batch.images for batch in Generator(model, seeds, **options)])


@pytest.fixture(scope="module")
def names(run_dir):
    """A model, and a weaker one of the same run."""
    return f"{run_dir}@sigma_rel=0.1", f"{run_dir}@sigma_rel=0.2,nimg=640"


@pytest.mark.parametrize(
    "sampling",
    [Sampling(num_steps=3), Sampling(num_steps=4, S_churn=10.0)]
    + [Sampling(num_steps=3, guidance=2.0, interval=(1, 2), apg=APG(), rescale=0.5)],
)
def test_an_image_depends_on_its_seed_to_the_last_bit(names, sampling):
    model, guide = raw(names[0]), raw(names[1]) if sampling.guidance != 1 else None
    common = {"sampling": sampling, "guide": guide}
    together = images(model, range(80), **common)
    assert len(together) == 80 and len(together.unique(dim=0)) == 80
    order = [79, 7, 3, 66, 0]
    assert torch.equal(images(model, order, **common), together[order])
    assert torch.equal(images(model, [7], **common, batch_size=1), together[7:8])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(images(model, range(80), **common), together)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_a_network_without_labels_guides_in_the_same_call(names):
    sampling = Sampling(num_steps=3, guidance=1.5)
    model = raw(names[0])
    together = images(model, range(80), sampling=sampling, guide="unlabelled")
    assert torch.equal(
        images(model, [75, 2], sampling=sampling, guide="unlabelled"), together[[75, 2]]
    )
    assert (together - images(model, range(80), sampling=Sampling(num_steps=3))).abs().max() > 0.01


def test_images_are_those_of_the_sampler(names):
    """By hand for two seeds, up to rounding: noise from the seed, guidance, Heun's method."""
    model, guide = raw(names[0]), raw(names[1])
    sampling = Sampling(num_steps=5, guidance=1.8, interval=(2, 3))
    got = images(
        model,
        [11, 5],
        conditioning=Conditioning.of(torch.tensor([3, 8])),
        sampling=sampling,
        guide=guide,
    )
    from edm2lite.sampling.levels import karras_sigmas
    from edm2lite.seeding import Purpose, rng

    sigmas = karras_sigmas(5).tolist()
    x = np.stack(
        [rng(s, 0, Purpose.GENERATION).standard_normal((1, 8, 8), np.float32) for s in (11, 5)]
    )
    x, labels = torch.from_numpy(x) * sigmas[0], torch.tensor([3, 8])
    for i in range(5):

        def slope(x, sigma, guided=2 <= i <= 3):
            D_x = model.net(x, torch.tensor(sigma), labels)
            if guided:
                D_x = 1.8 * D_x - 0.8 * guide.net(x, torch.tensor(sigma), labels)
            return (x - D_x) / sigma

        h, first = sigmas[i + 1] - sigmas[i], slope(x, sigmas[i])
        ahead = x + h * first
        x = ahead if i == 4 else x + h * (first + slope(ahead, sigmas[i + 1])) / 2
    torch.testing.assert_close(got, x, rtol=1e-3, atol=1e-4)


def test_classes_are_drawn_from_the_seeds():
    label = ClassLabel(10)
    classes = label.drawn(range(2000)).tolist()
    assert label.drawn([1234, 7]).tolist() == [classes[1234], classes[7]]
    counts = np.bincount(classes, minlength=10)
    assert abs(counts - 200).max() < 60  # 4.5 standard deviations


def test_threads_keep_order_and_pass_errors_on():
    def square(i):
        if i == 70:
            raise ValueError("seventy")
        assert torch.get_num_threads() == 1
        return i * i

    assert list(map_in_threads(square, range(50), 3)) == [i * i for i in range(50)]
    with pytest.raises(ValueError, match="seventy"):
        list(map_in_threads(square, range(60, 90), 2))
    assert next(map_in_threads(square, range(10), 2)) == 0  # and may be left early


def test_processes_share_the_seeds_and_the_folder(run_dir, names, tmp_path):
    common = (names[0], "--seeds", "0-69", "--steps", 2, "--guide", names[1], "--guidance", 2)
    succeed(*common, "--out", tmp_path / "one.zip")
    env = {**os.environ, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-m", "edm2lite.tools.generate", *map(str, common)]
    command += ["--out", str(tmp_path / "two.zip"), "--grid", str(tmp_path / "grid.png")]
    ranks = [
        subprocess.Popen(command, env={**env, "RANK": r}, stdout=subprocess.PIPE) for r in "01"
    ]
    try:
        said = [rank.communicate(timeout=60)[0].decode() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert "70 images in" in said[0] and said[1] == ""
    assert (tmp_path / "two.zip").read_bytes() == (tmp_path / "one.zip").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"one.zip", "two.zip", "grid.png"}


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
    (out / "000000/.000017.png.0-1.partial").unlink()
    assert files(out) == whole
    changed = {p.name for p in out.rglob("0*.png") if p.stat().st_mtime_ns != times.get(p)}
    assert changed == {"000003.png", "000017.png", "000030.png"}
    dataset = open_dataset(out)
    assert dataset.labels.tolist() == list(range(10)) * 4 and dataset.image_shape == (1, 8, 8)


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
    assert "something else" in fail(names[0], "--seeds", 0, "--out", tmp_path / "b")
    (tmp_path / "c.zip").write_text("no")
    assert "no ZIP file" in fail(names[0], "--seeds", 0, "--out", tmp_path / "c.zip")
    assert "is a file" in fail(names[0], "--seeds", 0, "--out", tmp_path / "b" / "thesis.tex")
    assert "come twice" in fail(names[0], "--seeds", "0,1,0", "--out", tmp_path / "d")


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


def save_net(path, **changes):
    config = {
        "img_resolution": 8, "img_channels": 1, "label_dim": 10, "model_channels": 16,
        "channel_mult": (1,), "num_blocks": 1, "attn_resolutions": (), "head_channels": 16,
    }  # fmt: skip
    net = Precond(PrecondConfig(backbone=UNetConfig(**{**config, **changes})))
    net.backbone.out_gain.data.fill_(1.0)
    encoder = {"encoder": PixelEncoder(shift=77.83, scale=191.79).to_json()}
    return str(net.save(path, encoder))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"img_channels": 3}, "img_channels is 1, that of"),
        ({"img_resolution": 16}, "img_resolution is 8, that of"),
        ({"label_dim": 7}, r"\(10 classes\) or less, .* takes 7 classes"),
    ],
)
def test_guides_that_do_not_fit_are_refused(names, tmp_path, changes, message):
    guide = load(save_net(tmp_path / "guide.safetensors", **changes))
    with pytest.raises(ValueError, match=message):
        Generator(load(names[0]), [0], guide=guide, sampling=Sampling(guidance=2.0))


def test_an_unconditional_guide_sees_no_labels(names, tmp_path):
    guide = load(save_net(tmp_path / "guide.safetensors", label_dim=0))
    got = images(load(names[0]), [0, 1], guide=guide, sampling=Sampling(num_steps=2, guidance=2.0))
    assert got.shape == (2, 1, 8, 8)
    with pytest.raises(ValueError, match="cannot be its own unconditional guide"):
        Generator(guide, [0], guide="unlabelled", sampling=Sampling(guidance=2.0))
    with pytest.raises(ValueError, match="another encoder"):
        other = dataclasses.replace(guide, encoder=PixelEncoder())
        Generator(load(names[0]), [0], guide=other, sampling=Sampling(guidance=2.0))


def test_mistakes_are_explained_before_anything_is_written(run_dir, names, tmp_path):
    out = ("--out", tmp_path / "x", "--seeds", "0")
    assert "0 to 9" in fail(run_dir, "--class", 10, *out)
    assert "number or all" in fail(run_dir, "--class", "cat", *out)
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
    assert "part of heun" in fail(run_dir, "--churn", 3, "--solver", "euler", *out)
    assert "cannot begin at sigma = infinity" in fail(run_dir, "--sigmas", "inf,9,1", *out)
    assert not (tmp_path / "x").exists()
    line = fail(names[0], "--guide", names[0], "--guidance", 2, *out)
    assert "has the same weights" in line
    with pytest.raises(ValueError, match="needs a guide"):
        Generator(load(run_dir), [0], sampling=Sampling(guidance=2.0))


def test_images_that_are_not_numbers_are_an_error(tmp_path):
    model = load(save_net(tmp_path / "net.safetensors"))
    model.net.backbone.out_gain.fill_(1e6)  # beyond what float16 can hold
    images(model, [0, 1], sampling=Sampling(num_steps=2))
    with pytest.raises(ValueError, match="0 to 1 came out as NaN or infinite"):
        images(model, [0, 1], sampling=Sampling(num_steps=2, dtype="float16"))


def test_a_model_file_with_nan_is_refused(tmp_path):
    net = Precond(PrecondConfig(backbone=UNetConfig(
        img_resolution=8, img_channels=1, model_channels=16, channel_mult=(1,), num_blocks=1,
        attn_resolutions=(), head_channels=16,
    )))  # fmt: skip
    net.backbone.out_gain.data.fill_(float("nan"))
    path = net.save(tmp_path / "net.safetensors")
    assert "finite weights, unet.out_gain" in fail(path, "--out", tmp_path / "x")


@pytest.mark.parametrize("dtype, tolerance", [("bfloat16", 0.15), ("float16", 0.02)])
def test_other_dtypes_give_nearly_the_same_images(names, dtype, tolerance):
    # of values of standard deviation 0.5; 11 and 8 bits over some 30 layers
    plain = images(raw(names[0]), [0, 1], sampling=Sampling(num_steps=4))
    other = images(raw(names[0]), [0, 1], sampling=Sampling(num_steps=4, dtype=dtype))
    assert 0 < (plain - other).abs().max() < tolerance


def test_compiled_networks_give_the_same_images(tmp_path, monkeypatch):
    """One graph per network, traced by several threads; the C++ compiler itself would take long."""
    seen, graphs = [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def compile(net, **options):
        seen.append(options)
        torch._dynamo.reset()
        return compile_(net, backend=backend, **options)

    compile_ = torch.compile
    monkeypatch.setattr("torch.compile", compile)
    model = raw(save_net(tmp_path / "net.safetensors"))
    sampling = Sampling(num_steps=2, guidance=2.0, interval=(0, 0))
    common = {"sampling": sampling, "guide": "unlabelled"}
    plain = images(model, range(80), **common)
    compiled = images(model, range(80), **common, compile=True)
    torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-5)
    assert seen == [{"fullgraph": True, "dynamic": False}]
    # A smaller last batch is filled up: it needs no graph of its own, and no step after the first.
    needed = len(graphs)
    images(model, range(64), **common, compile=True)
    assert needed == len(graphs) - needed == 2  # with the guide in the same call, and alone


def test_recipes_name_the_released_weights():
    assert len(RECIPES) == 2 * 7 + 2 + 3 + 2 * 8 + 2 * 4
    best = recipe("edm2-img512-xxl-autog-dino")
    assert best.model == "edm2-img512-xxl-0939524-0.130"
    assert best.guide == "edm2-img512-m-0268435-0.205"
    assert recipe("edm2-img64-xl-fid").model == "edm2-img64-xl-0671088-0.040"
    assert recipe("edm2-img64-s-autog-fid").guide == "edm2-img64-xs-0134217-0.110"
    assert recipe("edm2-img512-l-guid-fid").guide == "edm2-img512-xs-uncond-2147483-0.015"
    assert recipe("edm2-img512-s-guid-interval-fid").sampling.interval == (15, 21)
    for name, one in RECIPES.items():
        assert (one.guide is None) == (one.guidance == 1), name
        assert one.value > 1 and one.sampling.num_steps == 32


def test_a_recipe_runs_with_the_weights_in_a_folder(tmp_path):
    name, seeds = "edm2-img512-s-autog-fid", ("--seeds", "0-1", "--out", tmp_path / "x")
    common = ("--recipe", name, "--weights", tmp_path, *seeds)
    assert "edm2-img512-xs-0134217-0.125.safetensors" in fail(*common)
    save_net(tmp_path / "edm2-img512-s-2147483-0.070.safetensors")
    save_net(tmp_path / "edm2-img512-xs-0134217-0.125.safetensors")
    succeed(*common)
    settings = json.loads((tmp_path / "x" / "settings.json").read_text())
    assert settings["guidance"] == 2.1 and "guide" in settings
    assert "brings its own" in fail(*common, "--steps", 8, code=2)
    assert "nearest are edm2-img512-s-autog-fid" in fail(
        "--recipe", "edm2-img512-s-autog-fd", "--weights", tmp_path, *seeds
    )
    listed = CliRunner().invoke(edm2lite, ["generate", "--list-recipes"])
    assert listed.exit_code == 0 and len(listed.output.splitlines()) == 1 + len(RECIPES)


def test_waiting_ends_with_the_last_image(tmp_path, monkeypatch):
    folder, heard = ImageFolder(tmp_path / "a"), []
    folder.open({}, [1, 2, 3], None)

    def one_more(seconds):
        (tmp_path / "a/000000").mkdir(exist_ok=True)
        (tmp_path / f"a/000000/{len(heard):06d}.png").write_bytes(b"x")

    monkeypatch.setattr("time.sleep", one_more)
    folder.wait([1, 2, 3], heard.append)
    assert sum(heard) == 3 and len(heard) == 4


def test_images_of_other_shapes_are_made_and_impossible_ones_refused(names, tmp_path):
    wide = images(raw(names[0]), range(3), sampling=Sampling(num_steps=2, size=(4, 12)))
    assert wide.shape == (3, 1, 4, 12)
    alone = images(raw(names[0]), [1], sampling=Sampling(num_steps=2, size=(4, 12)))
    assert alone.equal(wide[1:2])
    options = ("--seeds", "0-1", "--steps", 2)
    succeed(names[0], *options, "--size", "16x8", "--out", tmp_path / "tall")
    with Image.open(next((tmp_path / "tall").rglob("*.png"))) as image:
        assert image.size == (8, 16)
    line = fail(names[0], *options, "--size", "9x8", "--out", tmp_path / "odd")
    assert "multiples of 2, got 9 x 8" in line and not (tmp_path / "odd").exists()
    assert "height and width" in fail(names[0], "--size", "8", "--out", tmp_path / "odd", code=2)


def test_what_a_killed_process_left_unfinished_is_removed_and_nobody_elses(names, tmp_path):
    options = (names[0], "--seeds", "0-2", "--steps", 1, "--out", tmp_path / "a")
    succeed(*options)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host, folder = socket.gethostname(), tmp_path / "a" / "000000"
    left = folder / f".000001.png.{host}.{dead.pid}.partial"
    others = [
        folder / f".000002.png.{host}.{os.getpid()}.partial",
        folder / f".000002.png.another-{host}.{dead.pid}.partial",
    ]
    for path in (left, *others):
        path.write_bytes(b"half")
    succeed(*options)
    assert not left.exists() and all(path.exists() for path in others)
