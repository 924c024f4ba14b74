"""Generating images leaves the network that it was given as it was."""

import dataclasses
import itertools

import pytest
import torch
from open_gains import open_network

from edm2lite.diffusion.objective import DenoisingLoss
from edm2lite.models.encoders import PixelEncoder
from edm2lite.models.loading import Model
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.layers import normalize_weights_
from edm2lite.network.unet import UNetConfig
from edm2lite.sampling.images import ImageGenerator
from edm2lite.sampling.settings import Sampling

UNET = UNetConfig(
    img_resolution=8, img_channels=1, label_dim=3, model_channels=16, channel_mult=(1, 2),
    num_blocks=1, attn_resolutions=(4,), head_channels=16,
)  # fmt: skip
SHORT = Sampling(num_steps=2)


def model_of(net, name="main"):
    return Model(name, net, PixelEncoder(), {"digest": name})


def images_of(batches):
    return torch.cat([batch.images for batch in batches])


def snapshot(net):
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    kept = {
        name: (id(t), t.dtype, t.device, t.stride(), t.requires_grad, t.detach().clone())
        for name, t in tensors.items()
    }
    modules = [(type(m), m.training) for m in net.modules()]
    return modules, net.config, kept


def assert_unchanged(net, before):
    modules, config, kept = snapshot(net)
    assert modules == before[0] and config is before[1] and kept.keys() == before[2].keys()
    for name, (*what, value) in kept.items():
        assert what == list(before[2][name][:-1]) and value.equal(before[2][name][-1]), name


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_neither_model_nor_guide_changes(training, compiled, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda net, **_: net)  # what comes before it is tested
    net, weaker = (open_network(UNET).train(training) for _ in range(2))
    before = snapshot(net), snapshot(weaker)
    for dtype, guide in itertools.product(
        (None, "bfloat16"), (None, "unconditional", model_of(weaker, "weaker"))
    ):
        sampling = dataclasses.replace(SHORT, dtype=dtype, guidance=2.0 if guide else 1.0)
        generator = ImageGenerator(
            model_of(net), range(3), sampling=sampling, guide=guide, compiled=compiled
        )
        assert len(images_of(generator)) == 3
        assert_unchanged(net, before[0])
        assert_unchanged(weaker, before[1])


def test_a_network_that_needs_a_condition_image_is_prepared_for_compiling(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda net, **_: net)
    model = model_of(open_network(dataclasses.replace(UNET, cond_channels=2)))
    told = Conditioning({"label": torch.tensor([0, 2]), "image": torch.randn(2, 2, 8, 8)})
    plain, compiled = (
        images_of(ImageGenerator(model, range(2), told, sampling=SHORT, compiled=c)).int()
        for c in (False, True)
    )
    assert (plain - compiled).abs().max() <= 1  # kernels round differently


def test_generators_of_two_types_over_one_model_do_not_interfere():
    model, settings = model_of(open_network(UNET)), {}
    for dtype in ("float32", "bfloat16"):
        settings[dtype] = dataclasses.replace(SHORT, dtype=dtype)
    generators = {
        dtype: ImageGenerator(model, range(130), sampling=s) for dtype, s in settings.items()
    }
    alone = {dtype: images_of(generator) for dtype, generator in generators.items()}
    assert not alone["float32"].equal(alone["bfloat16"])
    # 130 images are three batches: they alternate between the two
    batches = list(zip(*generators.values(), strict=True))
    for i, dtype in enumerate(generators):
        assert images_of([pair[i] for pair in batches]).equal(alone[dtype])


def test_a_network_in_training_goes_on_to_the_same_bits():
    results = []
    for generates in (False, True):
        torch.manual_seed(0)
        net = open_network(UNET).train()
        adam = torch.optim.Adam(net.parameters(), lr=1e-2)
        for step in range(4):
            images, noise = torch.randn(2, 4, 1, 8, 8)
            sigma, labels = torch.rand(4) + 0.1, torch.tensor([0, 2, -1, 1])
            DenoisingLoss(net)(images, labels, sigma, noise).loss.mean().backward()
            if generates and step % 2:
                images_of(ImageGenerator(model_of(net), range(2), sampling=SHORT))
            adam.step()
            adam.zero_grad()
            normalize_weights_(net)
        results.append(net.state_dict())
    for name, value in results[0].items():
        assert value.equal(results[1][name]), name
