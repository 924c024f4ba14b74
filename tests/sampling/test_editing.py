"""Generation that begins with an image: variations, and parts filled in."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from sampling.generating import (
    fail,
    files,
    images,
    noise_of,
    on_two_ranks,
    raw,
    save_net,
    solved_by_hand,
    succeed,
)

import edm2lite
from edm2lite.dataset import open_dataset
from edm2lite.models.encoders import LatentEncoder
from edm2lite.models.loading import load
from edm2lite.models.patches import PatchEncoder
from edm2lite.sampling.edit import Edit, open_pictures
from edm2lite.sampling.levels import karras_sigmas
from edm2lite.sampling.settings import Sampling
from edm2lite.seeding import Purpose, rng

FOUR = Sampling(num_steps=4)
SEEDS = [3, 4, 5]


@pytest.fixture(scope="module")
def digits():
    """The first two digits, [2, 1, 8, 8] uint8."""
    return torch.from_numpy(open_dataset("digits").images([0, 1]))


@pytest.fixture
def upper():
    """A mask that fills in the upper half."""
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    mask[:, :, :4] = 255
    return mask


def begun(digits, seeds, model):
    """What the images of seeds begin with, as the network sees it, float64."""
    return model.encoder.encode(digits[[s % 2 for s in seeds]]).double()


def denoiser(model):
    net = model.net.double()

    def denoise(x, sigma, step):
        with torch.no_grad():
            return net(x, torch.tensor(sigma), None)

    return denoise


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """File of a model without classes."""
    return save_net(tmp_path_factory.mktemp("models") / "plain.safetensors", label_dim=0)


@pytest.mark.parametrize(
    "options, levels",
    [
        ({"strength": 0.5}, karras_sigmas(4)[2:]),
        ({"strength": 0.6}, karras_sigmas(4)[2:]),  # 1.6 steps are left out: 2
        ({"strength": 0.9}, karras_sigmas(4)),  # not one step: all of them, from noise
        ({"sigma": 3.0}, [3.0, *karras_sigmas(4)[2:]]),
    ],
)
def test_a_variation_is_solved_from_the_image_plus_noise(options, levels, plain, digits):
    model, levels = raw(plain), [float(level) for level in levels]
    x = noise_of(SEEDS).double()
    if levels[0] < 80:
        x = x + begun(digits, SEEDS, model) / levels[0]
    expected = solved_by_hand(denoiser(load(plain)), x, levels)
    found = images(model, SEEDS, sampling=FOUR, edit=Edit(images=digits, **options))
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


def test_full_strength_is_generation_and_none_is_the_image(plain, digits):
    model = load(plain)
    pure = edm2lite.generate(model, SEEDS, sampling=FOUR)
    full = edm2lite.generate(model, SEEDS, sampling=FOUR, edit=Edit(images=digits))
    assert full.equal(pure)
    none = Edit(images=digits, strength=0.0)
    found = edm2lite.generate(model, SEEDS, sampling=FOUR, edit=none)
    assert found.equal(digits[[1, 0, 1]])


def test_guidance_of_a_step_stays_with_the_step(names, digits):
    """The last steps of a guided run are guided as they are in the whole run."""
    settings = Sampling(num_steps=4, guidance=2.0, interval=(2, 2))
    model, guide = raw(names[0]), raw(names[1])
    edit = Edit(images=digits, strength=0.5)
    common = {"guide": guide, "edit": edit}
    guided = images(model, SEEDS, sampling=settings, **common)
    earlier = images(
        model, SEEDS, sampling=dataclasses.replace(settings, interval=(0, 1)), **common
    )
    assert earlier.equal(images(model, SEEDS, sampling=FOUR, edit=edit))
    assert not guided.equal(earlier)


@pytest.mark.parametrize("solver", ["heun", "euler", "dpmpp_2m"])
@pytest.mark.parametrize("options", [{}, {"strength": 0.5}, {"resample": 3}])
def test_known_pixels_are_kept_and_the_rest_is_made(solver, options, plain, digits, upper):
    model = load(plain)
    sampling = Sampling(num_steps=4, solver=solver)
    edit = Edit(images=digits, mask=upper, **options)
    found = edm2lite.generate(model, SEEDS, sampling=sampling, edit=edit)
    expected = digits[[1, 0, 1]]
    assert found[:, :, 4:].equal(expected[:, :, 4:])
    assert (found[:, :, :4] != expected[:, :, :4]).any(dim=(1, 2, 3)).all()
    # the solver itself ends there, before the pixels are put back
    ends = images(raw(plain), SEEDS, sampling=sampling, edit=Keeps(images=digits, mask=upper))
    known = begun(digits, SEEDS, raw(plain))[:, :, 4:]
    torch.testing.assert_close(ends[:, :, 4:].double(), known, rtol=0, atol=1e-5)


class Keeps(Edit):
    """An edit that leaves what the solver made as it is."""

    def finished(self, seeds, images):
        return images


def test_resampling_goes_up_by_fresh_noise_and_takes_the_step_again(plain, digits):
    model, levels = raw(plain), karras_sigmas(2).tolist()
    sampling = Sampling(num_steps=2, solver="euler")
    drawn = draws(SEEDS, 3)
    x = drawn[0] * levels[0]
    denoise = denoiser(load(plain))
    step = 0
    for sigma, sigma_next in ((levels[0], levels[1]), (levels[1], levels[2])):
        for again in range(2):
            if again:
                step += 1
                x = x + math.sqrt(sigma**2 - sigma_next**2) * drawn[step]
            x = x + (sigma_next - sigma) * (x - denoise(x, sigma, 0)) / sigma
    edit = Edit(images=digits, resample=2)
    found = images(model, SEEDS, sampling=sampling, edit=edit)
    torch.testing.assert_close(found.double(), x, rtol=1e-3, atol=1e-3)


def draws(seeds, count):
    """The first draws of noise of each seed, float64 [count][N, 1, 8, 8]."""
    generators = [rng(s, 0, Purpose.GENERATION) for s in seeds]
    return [
        torch.from_numpy(
            np.stack([g.standard_normal((1, 8, 8), np.float32) for g in generators])
        ).double()
        for _ in range(count)
    ]


def test_an_edited_image_depends_on_its_seed_to_the_last_bit(plain, digits, upper):
    model = load(plain)
    edit = Edit(images=digits, mask=upper, strength=0.75, resample=2)
    together = images(model, range(70), sampling=FOUR, edit=edit)
    assert images(model, [69, 2], sampling=FOUR, edit=edit).equal(together[[69, 2]])


def test_patches_and_latents_begin_with_images_too(squares, latents, vae, tmp_path):
    source = open_dataset(squares)
    photos = torch.from_numpy(source.images([0, 1]))
    mask = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    mask[:, :, :13, :13] = 255  # not a multiple of a patch, nor of a latent
    patched = save_net(tmp_path / "a.safetensors", label_dim=0, img_channels=12, img_resolution=16)
    latent = save_net(tmp_path / "b.safetensors", label_dim=0, img_channels=4)
    stated = open_dataset(latents).encoder
    assert isinstance(stated, LatentEncoder)
    for model, exact in (
        (dataclasses.replace(load(patched), encoder=PatchEncoder()), True),
        (dataclasses.replace(load(latent), encoder=stated), False),
    ):
        none = edm2lite.generate(
            model, [0, 1], sampling=FOUR, edit=Edit(images=photos, strength=0.0)
        )
        # what the encoder leaves of them, to a pixel value: batches of other sizes round otherwise
        expected = model.encoder.decode(model.encoder.encode_images(photos))
        assert (none.int() - expected.int()).abs().max() <= 1
        assert none.equal(photos) if exact else not none.equal(photos)
        edit = Edit(images=photos, mask=mask)
        found = edm2lite.generate(model, [0, 1], sampling=FOUR, edit=edit)
        kept = (mask < 128).expand_as(photos)
        assert found[kept].equal(photos[kept]) and not found.equal(photos)


def save(path, pixels):
    Image.fromarray(pixels.squeeze().numpy()).save(path)
    return path


def test_the_command_takes_files_and_folders_and_records_them(plain, digits, upper, tmp_path):
    (tmp_path / "init").mkdir()
    for i in (0, 1):
        save(tmp_path / "init" / f"{i}.png", digits[i])
    mask = save(tmp_path / "mask.png", upper)
    words = (plain, "--seeds", "0-5", "--steps", 4, "--init-image", tmp_path / "init")
    out = tmp_path / "images"
    succeed(*words, "--mask", mask, "--resample", 2, "--out", out)
    expected = edm2lite.generate(
        load(plain), range(6), sampling=FOUR, edit=Edit(images=digits, mask=upper, resample=2)
    )
    assert torch.from_numpy(open_dataset(out).images(range(6))).equal(expected)
    settings = json.loads((out / "settings.json").read_text())
    assert {"init_images", "mask", "resample"} <= {*settings} and "strength" not in settings
    before = files(out)
    succeed(*words, "--mask", mask, "--resample", 2, "--out", out)
    assert files(out) == before
    assert "init_images" in fail(plain, "--seeds", "0-5", "--steps", 4, "--out", out)
    save(tmp_path / "init" / "1.png", digits[0])
    assert "init_images" in fail(*words, "--mask", mask, "--resample", 2, "--out", out)
    assert files(out) == before
    one = (plain, "--seeds", "0-1", "--steps", 4, "--init-image", tmp_path / "init" / "0.png")
    succeed(*one, "--from-sigma", 0.5, "--grid", tmp_path / "grid.png")
    assert (tmp_path / "grid.png").is_file()


def test_processes_share_edited_images(plain, digits, tmp_path):
    place = save(tmp_path / "a.png", digits[0])
    words = (plain, "--seeds", "0-69", "--steps", 2, "--init-image", place, "--strength", 0.5)
    succeed(*words, "--out", tmp_path / "one.zip")
    on_two_ranks(*words, "--out", tmp_path / "two.zip")
    assert (tmp_path / "two.zip").read_bytes() == (tmp_path / "one.zip").read_bytes()


def test_what_cannot_be_is_refused_in_one_line(plain, names, digits, upper, latents, tmp_path):
    good = save(tmp_path / "good.png", digits[0])
    wide = save(tmp_path / "wide.png", torch.zeros(8, 12, dtype=torch.uint8))
    color = tmp_path / "color.png"
    Image.new("RGB", (8, 8)).save(color)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no more")
    out = ("--steps", 4, "--out", tmp_path / "images")
    init = ("--init-image", good)
    assert "must become 1x8x8" in fail(plain, "--init-image", wide, *out)
    assert "must have 1 channel(s)" in fail(plain, "--init-image", color, *out)
    assert "cannot be read as an image" in fail(
        plain, "--init-image", tmp_path / "broken.png", *out
    )
    assert "must be of the size of the images" in fail(plain, *init, "--mask", wide, *out)
    assert "holds latents" in fail(plain, "--init-image", latents, *out)
    assert "not both" in fail(plain, *init, "--strength", 0.5, "--from-sigma", 1, *out)
    assert "at most 80" in fail(plain, *init, "--from-sigma", 100, *out)
    assert "positive and finite" in fail(plain, *init, "--from-sigma", -1, *out)
    assert "takes no S_churn" in fail(plain, *init, "--resample", 2, "--churn", 10, *out)
    assert "needs --init-image" in fail(plain, "--strength", 0.5, *out, code=2)
    assert "0<=x<=1" in fail(plain, *init, "--strength", 1.5, *out, code=2)
    assert not (tmp_path / "images").exists()
    with pytest.raises(ValueError, match=r"must be uint8 \[M, C, H, W\]"):
        Edit(images=digits.float())
    with pytest.raises(ValueError, match="resample must be at least 1"):
        Edit(images=digits, resample=0)
    assert open_pictures(good).image_shape == (1, 8, 8)
