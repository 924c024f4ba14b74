"""Images as patches: exact both ways, the order of channels, and a run from training to images."""

import numpy as np
import pytest
import torch
from tiny_run import tiny_config

from edm2lite import generate, load
from edm2lite.dataset import ImageDataset, open_dataset
from edm2lite.metrics.held_out_loss import DenoisingRows, check_dataset
from edm2lite.models.encoders import PixelEncoder, encoder_from_json
from edm2lite.models.patches import PatchEncoder
from edm2lite.network.conditions import ConditionImage
from edm2lite.sampling import Sampling
from edm2lite.seeding import Purpose, normals, rng
from edm2lite.training.compatibility import check_fit
from edm2lite.training.data import BatchSource
from edm2lite.training.trainer import Trainer

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 2, 12, 24), dtype=np.uint8)
PATCHES = (
    "encoder={kind: patches, shift: 77.83, scale: 191.79}",
    "net.backbone.img_channels=4",
    "net.backbone.img_resolution=4",
    "net.backbone.attn_resolutions=[2]",
)


@pytest.mark.parametrize("side", [1, 2, 3, 4])
@pytest.mark.parametrize("pixels", [PixelEncoder(), PixelEncoder(shift=209.94, scale=152.28)])
def test_patches_are_the_pixels_in_another_order_and_back(side, pixels):
    encoder = PatchEncoder(patch_size=side, shift=pixels.shift, scale=pixels.scale)
    x = encoder.encode(torch.from_numpy(IMAGES))
    n, c, h, w = IMAGES.shape
    # "n c (y i) (z j) -> n (c i j) y z"
    grid = IMAGES.reshape(n, c, h // side, side, w // side, side)
    expected = grid.transpose(0, 1, 3, 5, 2, 4).reshape(n, c * side**2, h // side, w // side)
    assert x.equal(pixels.encode(torch.from_numpy(np.ascontiguousarray(expected))))
    assert encoder.shape((c, h, w)) == x.shape[1:]
    assert encoder.decode(x).numpy().tolist() == IMAGES.tolist()
    i, j = side - 1, side // 2
    assert x[1, (side + i) * side + j, 1, 2] == pixels.encode(
        torch.tensor(IMAGES[1, 1, side + i, 2 * side + j])
    )
    assert encoder_from_json(encoder.to_json()) == encoder


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"patch_size": 0}, "encoder.patch_size must be at least 1, got 0"),
        ({"scale": 0.0}, "encoder.scale must be positive, got 0.0"),
    ],
)
def test_settings_without_meaning_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PatchEncoder(**settings)


def test_a_run_on_patches_trains_generates_images_and_has_a_held_out_loss(tmp_path):
    config = tiny_config(*PATCHES, "total_nimg=320")
    Trainer(config, tmp_path / "run", torch.device("cpu")).train()
    model = load(tmp_path / "run")
    assert model.encoder == config.encoder
    images = generate(model, range(2), sampling=Sampling(num_steps=4))
    assert images.shape == (2, 1, 8, 8) and images.dtype == torch.uint8
    digits = open_dataset("digits")
    check_dataset("this run", model.net, model.encoder, digits)
    rows, _ = DenoisingRows(model.net, model.encoder, digits, (0.5,), batch=2)(range(2))
    clean = model.encoder.encode(torch.from_numpy(digits.images([0, 1])))
    noise = normals([rng(i, 0, Purpose.EVALUATION) for i in (0, 1)], (4, 4, 4))
    told = digits.conditioning([0, 1])
    with torch.no_grad():
        D_x = model.net(clean + 0.5 * noise, torch.tensor(0.5), told)
    expected = 8 * (D_x - clean).double().square().mean(dim=(1, 2, 3))  # lambda(0.5) is 8
    np.testing.assert_allclose(rows[:, 0].double(), expected, rtol=1e-6)


def test_what_is_drawn_for_a_sample_is_the_same_numbers():
    def batch(encoder):
        source = BatchSource(
            open_dataset("digits"), seed=3, batch_size=8, microbatch=8, encoder=encoder
        )
        (part,) = source.batch(0)
        source.close()
        return part

    patches, pixels = batch(PatchEncoder()), batch(PixelEncoder())
    assert patches.noise.shape == (8, 4, 4, 4) and patches.z.equal(pixels.z)
    assert patches.noise.flatten().equal(pixels.noise.flatten())
    assert patches.images.equal(pixels.images)


def blank(height, width, **more):
    return ImageDataset("blank", 4, (1, height, width), lambda i: None, **more)


@pytest.mark.parametrize(
    "dataset, overrides, message",
    [
        (blank(8, 9), (), "sides of images must be multiples of encoder.patch_size = 2, got 8 x 9"),
        (blank(8, 8), ("net.backbone.img_channels=1",), "must be the 4 channels of blank, got 1"),
        (blank(16, 16), (), "img_resolution must be the size .* .8 x 8., got 4"),
        (
            blank(8, 8).with_condition(ConditionImage(1), lambda i: None),
            ("net.backbone.cond_channels=1",),
            "encoder.kind must be pixels for a network that takes a condition image .* got patches",
        ),
    ],
)
def test_what_does_not_go_with_patches_is_refused(dataset, overrides, message):
    config = tiny_config(*PATCHES, "net.backbone.label_dim=0", *overrides)
    with pytest.raises(ValueError, match=message):
        check_fit(config, dataset)
