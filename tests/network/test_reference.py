"""The straightforward network that speed is measured against is the same network."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from open_gains import open_network

from edm2lite.diffusion.objective import DenoisingLoss
from edm2lite.network.layers import normalize_weights_
from edm2lite.network.unet import UNetConfig

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "reference.py"
reference = SimpleNamespace(**runpy.run_path(str(SCRIPT)))

UNET = UNetConfig(
    img_resolution=16, img_channels=2, label_dim=5, model_channels=16, channel_mult=(1, 2, 2),
    num_blocks=1, attn_resolutions=(4,), head_channels=16,
)  # fmt: skip


@pytest.fixture
def net():
    return open_network(UNET)


def batch():
    sigma = torch.tensor([0.1, 1.0, 10.0])
    return torch.randn(3, 2, 16, 16), torch.tensor([4, 0, 2]), sigma, torch.randn(3, 2, 16, 16)


@pytest.mark.parametrize("labels", [torch.tensor([4, 0, 2]), None])
def test_reference_and_ours_give_the_same_images(net, labels):
    x, _, sigma, _ = batch()
    torch.testing.assert_close(
        reference.reference_denoiser(net)(x, sigma, labels),
        net(x, sigma, labels),
        atol=1e-5,
        rtol=1e-5,
    )


def test_reference_and_ours_give_the_same_training_step(net):
    """Two steps of Adam: theirs normalizes weights in forward, ours after the step."""
    ours, theirs = net.train(), reference.reference_of(net).train()
    for step in range(2):
        torch.manual_seed(step)
        images, labels, sigma, noise = batch()
        for model in (ours, theirs):
            if step == 0:
                model.adam = torch.optim.Adam(model.parameters(), lr=1e-2)
            loss = DenoisingLoss(model)(images, labels, sigma, noise).loss.sum()
            model.adam.zero_grad()
            loss.backward()
            model.adam.step()
            model.last = loss.item()
            if model is ours:
                normalize_weights_(net)
        # eps = 1e-4 outside the root shortens what forced weight norm stores by as much
        assert ours.last == pytest.approx(theirs.last, rel=1e-4)
    normalize_weights_(net)
    for name, value in ours.named_parameters():
        other = theirs.get_parameter(name)
        if other.ndim > 1:
            rms = other.flatten(1).square().mean(1).sqrt()
            other = other / rms.reshape(-1, *[1] * (other.ndim - 1))
        torch.testing.assert_close(value, other, atol=2e-3, rtol=0)
