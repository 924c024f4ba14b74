"""MP-DiT: identity at the start, magnitude 1 there and after training, gradients everywhere."""

import dataclasses
import math

import pytest
import torch
from open_gains import open_network

from edm2lite.dataset import open_dataset
from edm2lite.diffusion.measure import measure_denoiser
from edm2lite.diffusion.objective import DenoisingLoss
from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.models.encoders import PixelEncoder
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.dit import DiTConfig
from edm2lite.network.flops import count_macs
from edm2lite.network.layers import normalize_weights_
from edm2lite.network.mp_dit import MPDiTConfig
from edm2lite.network.operations import mp_join
from edm2lite.network.patches import rotate, rotations

DIGITS = MPDiTConfig(
    img_resolution=8, img_channels=1, label_dim=10, width=32, num_blocks=4, num_heads=2,
)  # fmt: skip


def outputs_of_blocks(net, call):
    """What every block was given and what it returned."""
    seen = []
    handles = [
        block.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
        for block in net.backbone.blocks()
    ]
    with torch.no_grad():
        call()
    for handle in handles:
        handle.remove()
    return seen


def rms(x):
    return x.square().mean().sqrt().item()


def test_blocks_begin_as_the_identity_at_magnitude_one():
    wide = dataclasses.replace(DIGITS, width=256, num_heads=4, num_blocks=6, img_channels=4)
    net = Precond(PrecondConfig(backbone=wide))
    layers = {}
    for name, module in net.named_modules():
        if hasattr(module, "expected_rms") and "out_" not in name:
            module.register_forward_hook(
                lambda m, args, out, name=name: layers.update({name: rms(out)})
            )
    sigma = torch.full((64,), 0.5)  # white data at its own level: the input has variance 1
    x = torch.randn(64, 4, 8, 8) * math.sqrt(0.5)
    for given, made in outputs_of_blocks(net, lambda: net(x, sigma, torch.arange(64) % 10)):
        assert rms(made) == pytest.approx(1, abs=0.05)
        torch.testing.assert_close(made, given, rtol=1e-3, atol=1e-3)
    for name, size in layers.items():
        if name.endswith("attn.proj"):  # a mean of 16 values of magnitude 1, related or not
            assert 0.25 < size < 1, name
        else:
            assert size == pytest.approx(1, rel=0.12), name


def test_every_parameter_has_a_gradient_by_the_second_step():
    net = Precond(PrecondConfig(backbone=DIGITS))
    loss, adam = DenoisingLoss(net), torch.optim.Adam(net.parameters(), lr=0.01)
    images, sigma, labels = torch.randn(16, 1, 8, 8), torch.rand(16) + 0.1, torch.arange(16) % 10
    labels[-1] = -1
    for _ in range(2):
        adam.zero_grad()
        loss(images, labels, sigma, torch.randn_like(images)).loss.mean().backward()
        still = [name for name, p in net.named_parameters() if not p.grad.any()]
        adam.step()
    assert not still  # in the first step, what lies behind an angle or a gain of 0


def test_after_500_steps_on_digits_blocks_are_of_magnitude_one():
    torch.manual_seed(0)
    dataset = open_dataset("digits")
    raw, labels = dataset.images(range(len(dataset))), torch.tensor(dataset.labels)
    images = PixelEncoder(shift=77.83, scale=191.79).encode(torch.from_numpy(raw))
    net = Precond(PrecondConfig(backbone=dataclasses.replace(DIGITS, num_blocks=2)))
    loss, adam = DenoisingLoss(net), torch.optim.Adam(net.parameters(), betas=(0.9, 0.99))
    losses = []
    for step in range(500):
        adam.param_groups[0]["lr"] = 0.02 * min(1, step / 50)
        rows, sigma = torch.randint(len(images), (8,)), (torch.randn(8) * 1.2 - 0.4).exp()
        noise = torch.randn(8, 1, 8, 8)
        value = loss(images[rows], labels[rows], sigma, noise).loss.mean() / 64
        adam.zero_grad()
        value.backward()
        adam.step()
        normalize_weights_(net)
        losses.append(value.item())
    assert sum(losses[-50:]) < 0.5 * sum(losses[:50])  # it has learned
    sigma = (torch.randn(256) * 1.2 - 0.4).exp()
    x = images[:256] + sigma[:, None, None, None] * torch.randn(256, 1, 8, 8)
    seen = outputs_of_blocks(net, lambda: net(x, sigma, labels[:256]))
    assert len(seen) == 2 and all(0.7 < rms(made) < 1.4 for _, made in seen)
    assert any(not torch.allclose(made, given, atol=0.1) for given, made in seen)


def test_a_join_keeps_the_magnitude_at_every_angle():
    a, b = torch.randn(2, 4, 50_000)
    for phi in (0.0, 0.4, 1.2, -2.0):
        joined = mp_join(a, b, torch.full((4, 1), phi))
        assert rms(joined) == pytest.approx(1, abs=0.01)
    assert mp_join(a, b, torch.zeros(1)).equal(a)
    phi = torch.zeros(1, requires_grad=True)
    mp_join(a, b, phi).sum().backward()
    assert phi.grad.item() == pytest.approx(b.sum().item(), rel=1e-3)


def test_turned_queries_and_keys_depend_on_the_distance_alone():
    turns = rotations(4, 5, side=4, channels=8, device="cpu")
    q, k = torch.randn(2, 8)
    queries, keys = (rotate(x.expand(20, 8), turns).reshape(4, 5, 8) for x in (q, k))
    assert rms(queries) == pytest.approx(rms(q), rel=1e-5)
    for row, column in ((0, 0), (1, 2), (2, 1)):
        product = queries[row, column] @ keys[row + 1, column + 2]
        torch.testing.assert_close(product, queries[0, 0] @ keys[1, 2], rtol=1e-4, atol=1e-5)


def test_it_costs_what_a_dit_costs():
    shape = {"img_resolution": 32, "img_channels": 4, "label_dim": 1000}
    one, other = (count_macs(c.preset("S/2", **shape)).total for c in (DiTConfig, MPDiTConfig))
    assert other == pytest.approx(one, rel=0.01)


def test_no_class_is_a_class_of_its_own_of_magnitude_one():
    net = Precond(PrecondConfig(backbone=dataclasses.replace(DIGITS, width=256, num_heads=4)))
    c_noise = torch.randn(512)
    null = net.backbone.embed(c_noise, Conditioning())
    told = net.backbone.embed(c_noise, Conditioning({"label": torch.arange(512) % 10}))
    assert rms(null) == pytest.approx(1, abs=0.1) and rms(told) == pytest.approx(1, abs=0.1)
    assert (null - told).abs().mean() > 0.3


def test_the_audit_finds_the_blocks_and_their_magnitude():
    net = open_network(dataclasses.replace(DIGITS, width=128, num_heads=4))
    images, labels = torch.randn(64, 1, 8, 8) * 0.5, torch.arange(64) % 10
    found = measure_denoiser(net, images, Conditioning({"label": labels}))
    blocks = [m for m in found if m.name.count(".") == 2 and "layers" in m.name]
    assert [m.activation for m in blocks] == pytest.approx(
        [1] * 4, abs=0.1
    )  # the mean over channels
    assert {m.bucket.split()[0] for m in blocks} == {"layers"}
