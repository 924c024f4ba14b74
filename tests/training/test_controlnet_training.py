"""ControlNet through the stock trainer: a frozen model, a file of its own, several at once."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sampling.generating import fail, noise_of, raw, solved_by_hand, succeed
from tiny_run import TINY
from training_runs import digests, run_jobs

import edm2lite
from edm2lite.dataset import Conversion, convert_images, open_collection, open_dataset
from edm2lite.ema import reconstruct
from edm2lite.models.adapters import read_adapter
from edm2lite.models.loading import load
from edm2lite.sampling.generation import image_generator
from edm2lite.sampling.levels import karras_sigmas
from edm2lite.sampling.settings import Sampling
from edm2lite.tensorfile import load_tensors
from edm2lite.training import Trainer, load_config

TWO = Sampling(num_steps=2)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def outlines(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "outlines.zip"
    convert_images(open_collection("digits"), path, Conversion(hint="outline"))
    return path


def config(base, outlines, *changes):
    return load_config(
        "digits-control",
        [f"init={base}", "tune.kind=controlnet", f"data.source={outlines}", *TINY, "total_nimg=320",
         "checkpoint_nimg=160", "snapshot_nimg=160", *changes],
    )  # fmt: skip


@pytest.fixture(scope="module")
def base(run_dir):
    return f"{run_dir}@sigma_rel=0.1"


@pytest.fixture(scope="module")
def control(base, outlines, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "control"
    Trainer(config(base, outlines), folder, CPU).train()
    return folder


def outline_of(outlines, rows):
    (known,) = open_dataset(outlines).extra_conditions
    return torch.from_numpy(np.stack([known.drawn(row) for row in rows]))


def test_the_base_stays_and_the_file_holds_the_control_alone(control, base):
    tensors, metadata = load_tensors(control / "last.safetensors")
    assert all(name.startswith("unet.controls.image.") for name in tensors)
    assert json.loads(metadata["adapter"])["kind"] == "controlnet"
    before, after = load(base).net.state_dict(), load(control).net.state_dict()
    assert all(after[name].equal(value) for name, value in before.items())
    angles = [value for name, value in tensors.items() if name.endswith("angles")]
    assert len(angles) == 5 and all(value.any() for value in angles)
    whole = sum(value.numel() for value in before.values())
    assert sum(value.numel() for value in tensors.values()) < 0.6 * whole


def test_a_run_stopped_half_way_ends_in_the_same_bits(control, base, outlines, tmp_path):
    for total in (160, 320):
        changes = (f"total_nimg={total}",)
        Trainer(config(base, outlines, *changes), tmp_path / "run", CPU).train()
    assert digests(tmp_path / "run") == digests(control)


def test_strength_multiplies_the_angles_and_0_is_the_base(control, base, outlines):
    hints = outline_of(outlines, range(4))
    file = str(control / "last.safetensors")
    options = {"classes": [0, 1, 2, 3], "sampling": TWO}
    plain = edm2lite.generate(base, range(4), **options)
    whole = edm2lite.generate(control, range(4), controls=[hints], **options)
    found = edm2lite.generate(base, range(4), adapters=[file], controls=[hints], **options)
    assert found.equal(whole) and not found.equal(plain)
    silent = edm2lite.generate(base, range(4), adapters=[f"{file}:0"], **options)
    assert silent.equal(plain)
    half, full = (load(base, [f"{file}:{s}"]).net.state_dict() for s in (0.5, 1))
    for name, value in full.items():
        factor = 0.5 if name.endswith("angles") and "controls" in name else 1
        assert half[name].equal(factor * value), name


def test_a_model_that_follows_the_image_already_is_refused(control, outlines, tmp_path):
    with pytest.raises(ValueError, match="follows image already.* set tune.condition to another"):
        Trainer(config(control, outlines), tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()


def test_two_controls_are_told_an_image_each(control, base, outlines, tmp_path):
    file = str(control / "last.safetensors")
    model = load(base, [f"{file}:0.5", file])
    assert model.net.config.backbone.condition_names == ("label", "image", "image2")
    first, second = outline_of(outlines, range(4)), outline_of(outlines, range(4, 8))
    options = {"classes": [0] * 4, "sampling": TWO}
    both = edm2lite.generate(model, range(4), controls=[first, second], **options)
    other = edm2lite.generate(model, range(4), controls=[second, first], **options)
    assert not both.equal(other)
    for name, rows in (("a", range(4)), ("b", range(4, 8))):
        (tmp_path / name).mkdir()
        for i, image in enumerate(outline_of(outlines, rows)):
            Image.fromarray(image[0].numpy()).save(tmp_path / name / f"{i}.png")
    words = (base, "--control-net", f"{file}:0.5", "--control-net", file, "--seeds", "0-3")
    more = ("--control", tmp_path / "a", "--control", tmp_path / "b", "--class", 0, "--steps", 2)
    succeed(*words, *more, "--out", tmp_path / "images")
    assert torch.from_numpy(open_dataset(tmp_path / "images").images(range(4))).equal(both)


def test_a_guide_follows_the_image_too_or_does_not(control, outlines):
    """By hand: guided by the model without its class, told the image, or told nothing."""
    hints = outline_of(outlines, range(3))
    model = raw(str(control))  # as if its base had been trained with label dropout
    exact = load(control).net.double()
    normal = open_dataset(outlines).extra_conditions[0].normalization
    image = torch.from_numpy(normal(hints.numpy())).double()
    main = {"label": torch.tensor([1, 2, 3]), "image": image}
    nothing = {"label": torch.full((3,), -1), "image": torch.zeros_like(image)}
    sigmas = karras_sigmas(2).tolist()
    for guidance, told in (("both", {**nothing, "image": image}), ("main", nothing)):

        def denoise(x, sigma, step, told=told):
            with torch.no_grad():
                D_main, D_guide = (exact(x, torch.tensor(sigma), t) for t in (main, told))
            return D_main + 0.5 * (D_main - D_guide)

        expected = solved_by_hand(denoise, noise_of(range(3)).double(), sigmas)
        sampling = Sampling(num_steps=2, guidance=1.5, control_guidance=guidance)
        found = image_generator(
            model, range(3), classes=[1, 2, 3], controls=[hints], guide="unconditional",
            sampling=sampling,
        )  # fmt: skip
        images = torch.cat([batch.images for batch in found]).double()
        torch.testing.assert_close(images, expected, rtol=1e-3, atol=1e-3)


def test_weights_by_resolution_multiply_the_angles(control, outlines):
    hints, options = outline_of(outlines, range(3)), {"classes": [1, 2, 3]}
    weighed = Sampling(num_steps=2, control_weights="resolution")
    found = edm2lite.generate(control, range(3), controls=[hints], sampling=weighed, **options)
    model = load(control)
    joins = model.net.backbone.controls["image"].joins
    for join, factor in zip(joins, (1, 1, 2, 2, 2), strict=True):  # 8x8: stem, block; 4x4: two
        join.angles.data.mul_(factor)
    by_hand = edm2lite.generate(model, range(3), controls=[hints], sampling=TWO, **options)
    assert found.equal(by_hand)
    assert not found.equal(
        edm2lite.generate(control, range(3), controls=[hints], sampling=TWO, **options)
    )


def test_averages_of_any_length_are_controls_too(control, base, outlines, tmp_path):
    hints = outline_of(outlines, range(3))
    options = {"classes": [1, 2, 3], "controls": [hints], "sampling": TWO}
    named = edm2lite.generate(f"{control}@sigma_rel=0.12,max_error=1", range(3), **options)
    (rebuilt,) = reconstruct(control, sigma_rel=[0.12], out=tmp_path / "averages", max_error=1.0)
    assert read_adapter(rebuilt.path).kind == "controlnet"
    found = edm2lite.generate(base, range(3), adapters=[str(rebuilt.path)], **options)
    assert found.equal(named)


def test_what_does_not_go_together_is_refused_in_one_line(
    control, base, outlines, run_dir, tmp_path
):
    out = ("--seeds", "0-3", "--steps", 2, "--out", tmp_path / "images")
    net = ("--control-net", control / "last.safetensors")
    assert "must be used with the model that it was trained on" in fail(run_dir, *net, *out)
    assert "must be given" in fail(base, *net, *out)
    with pytest.raises(ValueError, match="net.backbone must take what digits has"):
        Trainer(config(base, outlines, "data.source=digits", "data.condition_dropout={}"),
                tmp_path / "run", CPU)  # fmt: skip
    with pytest.raises(ValueError, match="3 channels"):
        Trainer(config(base, outlines, "tune.channels=3"), tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists() and not (tmp_path / "images").exists()


@pytest.mark.slow
def test_two_processes_train_the_same_control(control, base, outlines, tmp_path):
    (tmp_path / "control.yaml").write_text(config(base, outlines).to_yaml())
    words = [str(tmp_path / "control.yaml"), "--out", str(tmp_path / "run")]
    codes, said = run_jobs({"args": words, "ranks": 2})
    assert codes == [[0, 0]], said
    found, _ = load_tensors(tmp_path / "run" / "last.safetensors")
    for name, value in load_tensors(control / "last.safetensors")[0].items():
        assert (found[name] - value).norm() <= 1e-3 * value.norm() + 1e-6, name
