"""Batches as functions of the images seen, with every option, processes or threads."""

import dataclasses
import time

import numpy as np
import pytest
import torch
from open_gains import open_network

from edm2lite.dataset import ImageDataset, open_dataset
from edm2lite.dataset.labels import Labels
from edm2lite.models.encoders import EDM2_LATENTS
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.conditions import ConditionImage
from edm2lite.network.unet import UNetConfig
from edm2lite.seeding import Purpose, normals, rng
from edm2lite.training.data import BatchSource, DataConfig

FIELDS = ("images", "label", "image", "z", "noise", "latent_noise")


def pixels(sizes=None, labels=None, channels=3, count=40):
    """A data set whose images hold their index."""
    sizes = np.array([[4, 6]] * count if sizes is None else sizes)
    mixed = sizes if len(np.unique(sizes, axis=0)) > 1 else None

    def read(i):
        image = np.full((channels, *sizes[i]), i, np.uint8)
        image[:, :, 0] += 100  # so that mirroring shows
        return image

    table = None if labels is None else Labels(labels, int(labels.max()) + 1)
    return ImageDataset("made", len(sizes), (channels, *map(int, sizes[0])), read, table, mixed)


def latents(count=40):
    def read(i):
        return np.full((8, 4, 6), i, np.float32)

    return ImageDataset("made", count, (4, 4, 6), read, encoder=EDM2_LATENTS)


def source(dataset, batch_size=8, microbatch=8, rank=0, world_size=1, seed=1, **options):
    data = DataConfig(source="made", **options)
    return BatchSource(
        dataset, seed=seed, batch_size=batch_size, microbatch=microbatch, rank=rank,
        world_size=world_size, data=data,
    )  # fmt: skip


def field(batch, name):
    return batch.conditioning.get(name) if name in ("label", "image") else getattr(batch, name)


def joined(batches, name):
    parts = [field(b, name) for b in batches]
    return None if parts[0] is None else torch.cat(parts)


CLASSES = np.arange(40) % 5
PICTURES = np.random.default_rng(3).normal(size=(40, 2, 4, 6)).astype(np.float32)
CASES = {
    "plain": (lambda: pixels(labels=CLASSES), {}),
    "flip": (lambda: pixels(), {"flip": True}),
    "balanced": (lambda: pixels(labels=CLASSES**2 // 4), {"class_balanced": True}),
    "dropout": (lambda: pixels(labels=CLASSES), {"label_dropout": 0.5}),
    "vectors": (
        lambda: dataclasses.replace(pixels(), table=Labels(np.ones((40, 3), np.float32), 3)),
        {"label_dropout": 0.5},
    ),
    "latents": (latents, {}),
    "conditions": (
        lambda: pixels(labels=CLASSES).with_condition(ConditionImage(2), lambda i: PICTURES[i]),
        {"flip": True, "label_dropout": 0.3},
    ),
    "conditions apart": (
        lambda: pixels(labels=CLASSES).with_condition(ConditionImage(2), lambda i: PICTURES[i]),
        {"flip": True, "label_dropout": 0.1, "condition_dropout": {"label": 0.5, "image": 0.2}},
    ),
    "buckets": (lambda: pixels(sizes=[[4, 6]] * 25 + [[6, 4]] * 15), {"buckets": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_processes_micro_batches_threads_and_restarts_do_not_matter(case):
    make, options = CASES[case]
    one = source(make(), **options)
    whole = [one.batch(8 * k)[0] for k in range(20)]
    for k in (0, 7, 19):
        parts = []
        for rank in range(2):
            other = source(
                make(), microbatch=3, rank=rank, world_size=2, workers=3, prefetch=1, **options
            )
            parts += other.batch(8 * k)
            other.close()
        for name in FIELDS:
            a, b = field(whole[k], name), joined(parts, name)
            assert a is b is None or a.equal(b), (case, k, name)
    one.close()


def test_an_image_is_mirrored_half_of_the_time_and_anew_each_time():
    images = torch.cat([source(pixels(), flip=True).batch(8 * k)[0].images for k in range(50)])
    left, right = images[:, 0, 0, 0].int(), images[:, 0, 0, -1].int()
    mirrored = right > left
    assert (mirrored ^ (left > right)).all()
    # 400 draws: three standard errors are 0.075
    assert mirrored.float().mean() == pytest.approx(0.5, abs=0.075)
    index = torch.where(mirrored, left, right)
    shares = [mirrored[index == i].float().mean() for i in range(40)]
    assert any(0 < share < 1 for share in shares)


def test_the_network_is_told_the_condition_image_of_each_sample():
    """Which image, and whether it is mirrored, shows in the pixels; not taken from the loader."""
    labeled = pixels(labels=CLASSES)
    dataset = labeled.with_condition(ConditionImage(2), lambda i: PICTURES[i])
    config = UNetConfig(
        img_resolution=6, img_channels=3, label_dim=5, cond_channels=2, model_channels=16,
        head_channels=16, channel_mult=(1,), num_blocks=1, attn_resolutions=(),
    )  # fmt: skip
    net = open_network(config).eval()
    loader = source(dataset, flip=True, microbatch=4)
    mirrored = 0
    for k in range(10):
        for batch in loader.batch(8 * k):
            right = batch.images[:, 0, 0, -1].int() > batch.images[:, 0, 0, 0].int()
            index = torch.where(right, batch.images[:, 0, 0, 0], batch.images[:, 0, 0, -1]).int()
            image = torch.from_numpy(PICTURES[index])
            image[right] = image[right].flip(-1)
            mirrored += int(right.sum())
            assert batch.conditioning["image"].equal(image)
            labels = torch.from_numpy(CLASSES[index])
            x, sigma = batch.images / 127.5 - 1 + batch.noise, batch.z.exp()
            with torch.no_grad():
                got = net(x, sigma, batch.conditioning)
                assert got.equal(net(x, sigma, {"label": labels, "image": image}))
                assert not got.equal(net(x, sigma, {"label": labels, "image": image.flip(-1)}))
    assert 20 < mirrored < 60  # of 80
    np.testing.assert_array_equal(dataset.conditioning(range(40))["image"].numpy(), PICTURES)
    loader.close()


@pytest.mark.parametrize("vectors", [False, True])
def test_labels_are_dropped_with_the_given_probability(vectors):
    table = Labels(np.ones((40, 3), np.float32), 3) if vectors else Labels(CLASSES, 5)
    dataset = dataclasses.replace(pixels(), table=table)
    loader = source(dataset, label_dropout=0.2)
    labels = torch.cat([loader.batch(8 * k)[0].conditioning["label"] for k in range(100)])
    dropped = (labels == 0).all(1) if vectors else labels == -1
    # 800 draws: three standard errors are 0.042
    assert dropped.float().mean() == pytest.approx(0.2, abs=0.042)
    assert (dataset.labels >= 0).all()  # the data set itself is left as it is
    loader.close()


def test_conditions_are_dropped_each_apart_from_the_others():
    dataset = CASES["conditions apart"][0]()
    loader = source(dataset, condition_dropout={"label": 0.5, "image": 0.2}, label_dropout=0.1)
    told = [loader.batch(8 * k)[0].conditioning for k in range(150)]
    label = torch.cat([each["label"] for each in told]) == -1
    image = ~torch.cat([each["image"] for each in told]).any(dim=(1, 2, 3))
    # shares of 1200 draws: three standard errors are at most 0.044
    for found, share in (
        (label, 0.1 + 0.9 * 0.5), (image, 0.1 + 0.9 * 0.2), (label & image, 0.1 + 0.9 * 0.1),
    ):  # fmt: skip
        assert found.float().mean() == pytest.approx(share, abs=0.044)
    assert PICTURES.any(axis=(1, 2, 3)).all()
    loader.close()


def test_noise_is_that_of_the_sample_and_latents_have_their_own():
    batch = source(latents()).batch(16)[0]
    generators = [rng(1, g, Purpose.TRAINING) for g in range(16, 24)]
    assert batch.z.equal(normals(generators, ()))
    assert batch.noise.equal(normals(generators, (4, 4, 6)))
    own = normals([rng(1, g, Purpose.LATENT) for g in range(16, 24)], (4, 4, 6))
    assert batch.latent_noise.equal(own) and batch.images.dtype == torch.float32


def test_a_global_batch_has_images_of_one_size():
    loader = source(CASES["buckets"][0](), buckets=True)
    shapes = {tuple(loader.batch(8 * k)[0].noise.shape) for k in range(20)}
    assert shapes == {(8, 3, 4, 6), (8, 3, 6, 4)}
    loader.close()


def test_batches_are_prepared_ahead():
    dataset = pixels()
    asked = []

    def slow(i):
        asked.append(i)
        return dataset.read(i)

    loader = source(dataclasses.replace(dataset, read=slow), prefetch=2)
    loader.batch(0)
    deadline = time.monotonic() + 10
    while len(asked) < 24 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(asked) == 24  # the batch itself and two more, and then no further
    loader.batch(8)
    loader.close()


def test_damage_met_while_preparing_comes_out_where_the_batch_is_asked_for():
    dataset = pixels()

    def read(i):
        if i == 3:
            raise ValueError("img3.png cannot be read")
        return dataset.read(i)

    loader = source(dataclasses.replace(dataset, read=read), batch_size=40, microbatch=40)
    with pytest.raises(ValueError, match="img3.png cannot be read"):
        loader.batch(0)
    loader.close()


@pytest.mark.parametrize(
    "make, options, message",
    [
        (latents, {"flip": True}, "data.flip must be false for latents.*convert --mirror"),
        (pixels, {"label_dropout": 0.1}, "data.label_dropout must be 0, made has no labels"),
        (
            pixels,
            {"condition_dropout": {"label": 0.1}},
            r"must name conditions of made \(none\), got label",
        ),
        (pixels, {"class_balanced": True}, "must have class indices, found no labels"),
        (
            lambda: pixels(labels=CLASSES),
            {"class_balanced": True, "buckets": True},
            "exclude each other",
        ),
        (CASES["buckets"][0], {}, "images of made have 2 sizes; set data.buckets=true"),
    ],
)
def test_options_that_do_not_fit_are_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        source(make(), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"label_dropout": 1.0},
        {"condition_dropout": {"label": 1.1}},
        {"workers": 0},
        {"prefetch": 0},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=rf"{next(iter(options))}.* must"):
        DataConfig(source="digits", **options)


def test_the_digits_are_shown_as_before():
    """The order and noise of runs that were begun with earlier versions."""
    batch = source(open_dataset("digits"), batch_size=4, microbatch=4, seed=0).batch(1796)[0]
    order = [rng(0, epoch, Purpose.ORDER).permutation(1797) for epoch in (0, 1)]
    rows = [order[0][1796], *order[1][:3]]
    digits = open_dataset("digits")
    np.testing.assert_array_equal(batch.images.numpy(), digits.images(rows))
    assert batch.conditioning["label"].tolist() == digits.labels[rows].tolist()


def test_classes_out_of_range_are_found_before_a_device_sees_them(monkeypatch):
    digits = open_dataset("digits")
    wrong = Conditioning({"label": torch.full((16,), 10)})
    monkeypatch.setattr(type(digits), "conditioning", lambda *arguments: wrong)
    batches = BatchSource(digits, seed=0, batch_size=16, microbatch=16)
    with pytest.raises(ValueError, match="must be 0 to 9, or -1 for none, got 10 to 10"):
        batches.batch(0)
    batches.close()
