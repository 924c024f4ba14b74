"""A run on pictures of one's own: what is chosen, said, continued and refused."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edm2lite.dataset import open_dataset
from edm2lite.training import Trainer, load_config, own_choice, step_time
from edm2lite.training.own_choice import CHOSEN, length, with_cadences
from edm2lite.training.own_images import own_images
from edm2lite.training.own_run import own_run
from edm2lite.training.step_time import images_per_second

CPU = torch.device("cpu")
SMALL = ("net.backbone.model_channels=16", "net.backbone.head_channels=16", "total_nimg=1280")


def draw(folder, counts=(("Cats", 12), ("Dogs", 8)), side=48, transparent=True):
    """A folder per class: a disk of a color of its own on nothing, or on gray."""
    generator = np.random.default_rng(0)
    for number, (name, count) in enumerate(counts):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.zeros((side, side, 4), np.uint8)
            y, x = np.mgrid[:side, :side] - generator.integers(side // 3, side // 2, (2, 1, 1))
            inside = x**2 + y**2 < (side // 4) ** 2
            pixels[inside] = (*generator.integers(0, 256, 2), 255 * number, 255)
            image = Image.fromarray(pixels, "RGBA")
            if not transparent:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "gray"), image)
                image = image.convert("RGB")
            image.save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(autouse=True)
def speed(monkeypatch):
    """Nothing is timed, but in the test of the timing itself."""
    monkeypatch.setattr(step_time, "images_per_second", lambda config, device: 100.0)


@pytest.fixture
def photos(tmp_path):
    return draw(tmp_path / "photos")


def choose(photos, out, *changes, **options):
    """The configuration, and what was said."""
    lines = []
    config = own_run(
        str(photos), out, overrides=[*SMALL, *changes], device=CPU, say=lines.append, **options
    )
    return config, "\n".join(lines)


def test_a_folder_of_transparent_pictures_becomes_a_run_that_trains(photos, tmp_path):
    config, said = choose(photos, tmp_path / "run")
    dataset = open_dataset(config.data.source)
    assert config.data.source == str(tmp_path / "run" / "dataset.zip")
    assert dataset.image_shape == (3, 32, 32) and dataset.labels.tolist() == [0] * 12 + [1] * 8
    assert (dataset.images([0])[0, :, 0, 0] == 255).all()  # white behind what was transparent
    assert "20 images in 2 classes (Cats 12, Dogs 8)" in said and "20 of them transparent" in said
    assert config.net.backbone.label_dim == 2 and config.data.label_dropout == 0.1
    assert load_config(str(tmp_path / "run")) == config
    trainer = Trainer(config, tmp_path / "run", CPU)
    trainer.train_step()
    trainer.close()


def test_what_the_network_sees_has_mean_0_and_deviation_one_half(photos, tmp_path):
    config, _ = choose(photos, tmp_path / "run")
    dataset = open_dataset(config.data.source)
    x = config.encoder.encode(torch.from_numpy(dataset.images(range(len(dataset)))))
    assert x.shape == (20, 12, 16, 16)
    # shift and scale have two decimals: relative to a deviation of 50 gray levels and more, 2e-4
    assert x.mean().item() == pytest.approx(0, abs=2e-4)
    assert x.std().item() == pytest.approx(0.5, rel=2e-4)


def test_the_same_command_goes_on_with_the_same_choices(photos, tmp_path, monkeypatch):
    first, _ = choose(photos, tmp_path / "run")
    monkeypatch.setattr(own_choice, "MINUTES", 1e6)  # a machine that has become faster
    before = (tmp_path / "run" / "dataset.zip").stat().st_mtime_ns
    again, said = choose(photos, tmp_path / "run")
    assert again == first and "goes on with its own configuration" in said
    assert (tmp_path / "run" / "dataset.zip").stat().st_mtime_ns == before


def test_pictures_that_were_converted_before_the_run_broke_off_are_used(photos, tmp_path):
    choose(photos, tmp_path / "run")
    (tmp_path / "run" / "config.yaml").unlink()
    _, said = choose(photos, tmp_path / "run")
    assert "converted before" in said
    assert "goes on with" in choose(photos, tmp_path / "run", resolution=32)[1]


def test_a_run_is_not_continued_on_other_pictures(photos, tmp_path):
    choose(photos, tmp_path / "run")
    other = draw(tmp_path / "other")
    with pytest.raises(ValueError, match="give another --out"):
        choose(other, tmp_path / "run")
    with pytest.raises(ValueError, match="made with resolution 32, now it is 16"):
        choose(photos, tmp_path / "run", resolution=16)


def test_what_a_person_sets_goes_before_every_choice(photos, tmp_path):
    config, said = choose(
        photos, tmp_path / "run", "batch_size=20", "microbatch=20", "snapshot_nimg=100",
        "total_nimg=4000", "optim.ref_batches=7", "encoder.scale=99", resolution=64,
    )  # fmt: skip
    assert (config.batch_size, config.total_nimg, config.snapshot_nimg) == (20, 4000, 100)
    assert config.optim.ref_batches == 7 and config.encoder.scale == 99
    assert config.status_nimg == 40 and config.sample_nimg == 500
    assert config.encoder.patch_size == 4 and config.net.backbone.img_resolution == 16
    assert "4,000 images, as you asked" in said and "uncompiled" not in said
    assert " / 99.0: as you asked" in said
    _, said = choose(photos, tmp_path / "compiled", "compile=true")
    assert "the 100 images a second that were measured here, uncompiled" in said


@pytest.mark.parametrize("speed", [3.0, 180.0, 5000.0])
def test_a_run_on_a_cpu_has_forty_snapshots_and_takes_minutes(speed):
    total = length(700, 32, speed, "cpu")
    values = with_cadences({"total_nimg": total, "batch_size": 32}, [])
    assert all(value % 32 == 0 for key, value in values.items() if key.endswith("_nimg"))
    assert total // values["snapshot_nimg"] >= 40
    if speed > 100:  # a slower machine takes longer: fewer than 800 steps show nothing
        assert 6 * 60 < total / speed < 8 * 60


@pytest.mark.parametrize("num_images, expected", [(700, 1_397_760), (5000, 9_999_360), (10**6, 0)])
def test_a_run_on_a_gpu_is_as_long_as_there_are_pictures(num_images, expected):
    total = length(num_images, 128, 1.0, "cuda")
    assert total == (expected or 2**25 // (40 * 128) * 40 * 128)


@pytest.mark.parametrize("name", CHOSEN)
@pytest.mark.parametrize(
    "side, channels, classes", [(16, 1, 0), (28, 3, 2), (48, 3, 5), (64, 3, 1)]
)
def test_networks_take_pictures_of_any_size(name, side, channels, classes):
    labels = [i % classes if classes else None for i in range(20)]
    dataset = fake(side, channels, labels if classes else None)
    base = load_config(name, ["data.source=x"])
    values = own_choice.network_values(base, dataset)
    config = load_config(name, ["data.source=x", *(f"{k}={v}" for k, v in values.items())])
    backbone = config.net.backbone
    assert config.encoder.shape((channels, side, side)) == (
        backbone.img_channels, backbone.img_resolution, backbone.img_resolution
    )  # fmt: skip
    assert backbone.label_dim == (classes if classes > 1 else 0)
    assert (config.data.label_dropout > 0) == (classes > 1)
    assert set(backbone.attn_resolutions) <= {backbone.img_resolution >> i for i in range(3)}


def fake(side, channels, labels):
    from edm2lite.dataset import ImageDataset
    from edm2lite.dataset.labels import as_labels

    noise = np.random.default_rng(1).integers(0, 256, (20, channels, side, side)).astype(np.uint8)
    table = None if labels is None else as_labels(labels, "fake")
    return ImageDataset("fake", 20, (channels, side, side), lambda i: noise[i], table)


def test_sizes_are_chosen_by_the_pictures(tmp_path):
    small = draw(tmp_path / "small", side=20, transparent=False)
    found = own_images(str(small), tmp_path / "a", largest=64)
    assert found.dataset.image_shape[1] == 16 and "transparent" not in found.done
    large = draw(tmp_path / "large", side=300)
    assert own_images(str(large), tmp_path / "b", largest=64).dataset.image_shape[1] == 64
    assert own_images(str(large), tmp_path / "c", largest=32).dataset.image_shape[1] == 32


def test_a_data_set_of_one_size_is_used_where_it_lies(photos, tmp_path):
    converted = own_images(str(photos), tmp_path / "a", largest=32).source
    found = own_images(converted, tmp_path / "b", largest=64)
    assert found.source == converted and not (tmp_path / "b").exists()
    again = own_images(converted, tmp_path / "b", largest=64, resolution=16)
    assert again.dataset.image_shape[1] == 16 and again.dataset.labels.tolist()[-1] == 1


def test_a_picture_that_cannot_be_read_is_left_out_and_named(photos, tmp_path):
    (photos / "Cats" / "broken.png").write_bytes(b"\x89PNG and nothing else")
    _, said = choose(photos, tmp_path / "run")
    assert "20 images" in said and re.search(r"1 left out that cannot be read .*broken\.png", said)


def test_mistakes_are_one_line_and_leave_nothing(photos, tmp_path):
    out, latents = tmp_path / "run", tmp_path / "latents.yaml"
    latents.write_text("base: tiny-32\nencoder: {kind: latents}\n")
    for data, options, message in (
        (tmp_path / "nowhere", {}, "there is nothing at"),
        (photos, {"resolution": 30}, "the nearest is 32"),
        (photos, {"preset": str(latents)}, "goes with configurations for pixels"),
        (draw(tmp_path / "few", [("A", 5)]), {}, "at least 16 pictures"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            choose(data, out, **options)
        assert not (out / "config.yaml").exists()


def test_a_model_is_fine_tuned_on_pictures_of_its_classes(photos, tmp_path):
    config, _ = choose(photos, tmp_path / "base")
    trainer = Trainer(config, tmp_path / "base", CPU)
    trainer.outputs.save_last(0)
    trainer.close()
    tuned, said = choose(photos, tmp_path / "tuned", init=str(tmp_path / "base"))
    assert tuned.net == config.net and tuned.encoder == config.encoder
    assert "fine-tuned at" in said and tuned.optim.ref_lr < config.optim.ref_lr
    assert "0.3 of the usual learning rate" in said
    faster, said = choose(photos, tmp_path / "f", "optim.ref_lr=0.02", init=str(tmp_path / "base"))
    assert faster.optim.ref_lr == 0.02 and "at a learning rate of 0.02, as you asked" in said
    one = draw(tmp_path / "one", [("Cats", 20)])
    with pytest.raises(ValueError, match="must have the 2 classes"):
        choose(one, tmp_path / "none", init=str(tmp_path / "base"))


def test_time_is_measured_and_the_random_state_stays(tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert images_per_second(load_config("digits"), CPU, num_steps=1) > 0
    assert torch.get_rng_state().equal(before)


def test_threads_and_dtype_are_those_that_are_faster(photos, tmp_path, monkeypatch):
    def timed(config, device):
        return 100.0 * (1.5 if config.threads == 1 else 1) * (2 if "bf" in config.net.dtype else 1)

    monkeypatch.setattr(step_time, "images_per_second", timed)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", lambda num: None)
    config, said = choose(photos, tmp_path / "fast")
    assert (config.threads, config.net.dtype) == (1, "bfloat16")
    assert "1, 1.5 times as fast" in said and "bfloat16, 2.0 times as fast" in said
    asked, _ = choose(photos, tmp_path / "asked", "threads=2", "net.dtype=float32")
    assert (asked.threads, asked.net.dtype) == (2, "float32")


def test_a_run_is_followed_to_another_place_and_spelling(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / "Trip #1: all"
    photos.rename(odd)
    config, _ = choose(odd, Path("runs #2/a"))
    assert config.data.source == "runs #2/a/dataset.zip"
    again, said = choose(odd, tmp_path / "runs #2" / "a")
    assert again == config and "goes on with its own configuration" in said
    (tmp_path / "runs #2").rename(tmp_path / "moved")
    moved, _ = choose(odd, Path("moved/a"))
    assert moved.data.source == "moved/a/dataset.zip" and len(open_dataset(moved.data.source)) == 20


def test_a_run_that_goes_on_is_the_one_that_is_asked_for(photos, tmp_path):
    choose(photos, tmp_path / "run", preset="tiny-32")
    choose(photos, tmp_path / "run", preset="tiny-32")
    for message, asked in (
        ("another network than the configuration", {"preset": "small-64"}),
        ("--init names other.safetensors", {"init": "other.safetensors"}),
    ):
        with pytest.raises(ValueError, match=message):
            choose(photos, tmp_path / "run", **asked)


@pytest.mark.parametrize("place", ["", "run"])
def test_a_run_among_its_pictures_is_refused(photos, place):
    before = sorted(photos.rglob("*"))
    with pytest.raises(ValueError, match="--out must lie outside of the pictures"):
        choose(photos, photos / place)
    assert sorted(photos.rglob("*")) == before
