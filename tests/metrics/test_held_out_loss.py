"""Held-out loss: its scale, independence of the batch, and networks that are in training."""

import dataclasses

import numpy as np
import pytest
import torch

from edm2lite.dataset import ImageDataset, open_dataset
from edm2lite.diffusion.precond import Precond
from edm2lite.metrics.held_out_loss import DenoisingRows, check_dataset
from edm2lite.models.encoders import LatentEncoder
from edm2lite.models.loading import load

LEVELS = (0.02, 0.5, 5.0)


def test_loss_of_a_network_that_knows_nothing_is_one(run_dir):
    model = load(run_dir)
    with torch.no_grad():
        model.net.backbone.out_gain.zero_()
    rows, _ = DenoisingRows(model.net, model.encoder, open_dataset("digits"), LEVELS)(range(300))
    # |c_skip (y + s n) - y|**2 lambda has mean (sigma_data**2 s**2 + m s**4 / ...) = 1 where the
    # images have mean square sigma_data**2; the encoder of the preset makes it so to 1 %
    np.testing.assert_allclose(rows.mean(0), [1, 1, 1], atol=0.03)


def test_loss_does_not_depend_on_the_batch_beyond_rounding(run_dir):
    model, digits = load(run_dir), open_dataset("digits")
    a, _ = DenoisingRows(model.net, model.encoder, digits, LEVELS, batch=64)(range(30))
    b, _ = DenoisingRows(model.net, model.encoder, digits, LEVELS, batch=7)(range(30))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_network_in_training_is_left_as_it_was_and_measured_without_dropout(run_dir):
    model, digits = load(run_dir), open_dataset("digits")
    expected, _ = DenoisingRows(model.net, model.encoder, digits, LEVELS)(range(10))
    backbone = dataclasses.replace(model.net.config.backbone, dropout=0.5)
    net = Precond(dataclasses.replace(model.net.config, backbone=backbone)).train()
    net.load_state_dict(model.net.state_dict())
    net.logvar_linear.eval()  # one part in another mode than the whole
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    random_state = torch.get_rng_state()
    rows, _ = DenoisingRows(net, model.encoder, digits, LEVELS)(range(10))
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_held_out_images_of_another_kind_are_refused(run_dir):
    model = load(run_dir)

    def check(**changes):
        fields = {"image_shape": (1, 8, 8), "encoder": None, **changes}
        dataset = ImageDataset("other", 3, read=lambda index: None, **fields)
        check_dataset("m", model.net, model.encoder, dataset)

    with pytest.raises(ValueError, match=r"images of \[1, 8, 8\] for m, other has \[3, 8, 8\]"):
        check(image_shape=(3, 8, 8))
    with pytest.raises(ValueError, match="must have 10 classes for m, other has no condition"):
        check()
    with pytest.raises(ValueError, match="must be pixels for m, other holds latents"):
        check(encoder=LatentEncoder())
    check_dataset("m", model.net, model.encoder, open_dataset("digits"))
