"""Text in networks: the equations in NumPy, padding, null captions, silent at the start."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from backbones import TEXT
from open_gains import open_network

from edm2lite.diffusion.objective import DenoisingLoss
from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.network.backbone import backbone_from_dict
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.conditions import Tokens
from edm2lite.network.flops import count_macs
from edm2lite.network.layers import MPConv, mp_layers, normalize_weights_
from edm2lite.network.magnitudes import Meter
from edm2lite.network.text import (
    PixelTextAttention,
    TextAttention,
    TextConfig,
    UNetText,
    text_of,
    with_null_flag,
)
from edm2lite.sweep.groups import group_of

UNET = TEXT["unet"]
of_every_backbone = pytest.mark.parametrize("backbone", TEXT.values(), ids=list(TEXT))


def caption(num, length, size=6):
    """What a network is told: ``num`` captions of ``length`` tokens."""
    return {"pooled": torch.randn(num, size), "tokens": torch.randn(num, length, size)}


def padded(told, length):
    tokens = torch.nn.functional.pad(told["tokens"], (0, 0, 0, length - told["tokens"].shape[1]))
    return {**told, "tokens": tokens}


def inputs(num=3):
    return torch.randn(num, 2, 8, 8), torch.tensor([0.1, 1.0, 10.0])[:num]


def unit(x):
    """Divided by the RMS over the last dimension, with the constant of Eq. 30."""
    return x / (np.sqrt(np.mean(x**2, axis=-1, keepdims=True)) + 1e-4)


def double(x):
    return x.detach().double().numpy()


def dense(layer, x):
    """The product with rows of norm 1, in float64."""
    return x @ unit(double(layer.weight)).T / math.sqrt(x.shape[-1])


def test_cross_attention_is_what_its_equations_say():
    net, x = TextAttention(16, length=6, num_heads=2), torch.randn(2, 5, 16)
    with torch.no_grad():
        net.angles.uniform_(-2, 2)
    tokens = torch.randn(2, 3, 6)
    tokens[1, 1:] = 0  # a shorter caption
    text = text_of(Conditioning({"tokens": tokens}), TextConfig(tokens=6, num_tokens=4), x)
    for n, length in enumerate((3, 1)):
        seen = np.zeros((length + 1, 7))
        seen[:length, :6] = tokens[n, :length]
        seen[-1, -1] = math.sqrt(7)  # the null token
        q = unit(dense(net.q, double(x)[n]).reshape(5, 2, 8))
        k, v = unit(dense(net.kv, seen).reshape(length + 1, 2, 2, 8)).transpose(1, 0, 2, 3)
        logits = np.einsum("phc,thc->hpt", q, k) / math.sqrt(8)
        weights = np.exp(logits)
        weights /= weights.sum(2, keepdims=True)
        y = dense(net.proj, unit(np.einsum("hpt,thc->phc", weights, v).reshape(5, 16)))
        phi = double(net.angles)
        expected = np.cos(phi) * double(x)[n] + np.sin(phi) * y
        np.testing.assert_allclose(double(net(x, text))[n], expected, rtol=1e-5, atol=1e-5)
        with torch.no_grad():  # the fused kernel
            np.testing.assert_allclose(double(net(x, text))[n], expected, rtol=1e-5, atol=1e-5)


def test_pooled_text_is_mixed_with_noise_and_class_as_the_equations_say():
    net = Precond(PrecondConfig(backbone=UNET)).unet
    c_noise, told = torch.randn(3), {"label": torch.tensor([4, 0, -1]), **caption(3, 2)}
    told["pooled"][2] = 0
    noise = np.cos(np.outer(double(c_noise), double(net.emb_fourier.freqs))
                   + double(net.emb_fourier.phases)) * math.sqrt(2)  # fmt: skip
    one_hot = np.eye(5)[[4, 0, 0]] * [[1], [1], [0]] * math.sqrt(5)
    pooled = np.concatenate([double(told["pooled"]), np.array([[0], [0], [math.sqrt(7)]])], 1)
    words = (dense(net.emb_label, one_hot) + dense(net.emb_pooled, pooled)) / math.sqrt(2)
    z = (dense(net.emb_noise, noise) + words) / math.sqrt(2)
    np.testing.assert_allclose(
        double(net.embed(c_noise, Conditioning(told))), z / (1 + np.exp(-z)) / 0.596, rtol=1e-4,
        atol=1e-4,
    )  # fmt: skip


@of_every_backbone
def test_padding_changes_no_bit(backbone):
    net, (x, sigma), told = open_network(backbone), inputs(), caption(3, 2)
    for context in (torch.enable_grad(), torch.no_grad()):
        with context:
            expected = net(x, sigma, told)
            for length in (3, 4, 5, 19):
                assert net(x, sigma, padded(told, length)).equal(expected)
    with pytest.raises(ValueError, match=r"tokens must be 4 or fewer .* got up to 5"):
        net(x, sigma, caption(3, 5))


@of_every_backbone
def test_a_null_caption_does_not_depend_on_what_it_replaces(backbone):
    net, (x, sigma) = open_network(backbone), inputs()
    expected = net(x, sigma)  # told nothing
    assert expected.isfinite().all()
    for length in (1, 4):
        told = Conditioning(caption(3, length))
        assert not net(x, sigma, told).isclose(expected, atol=1e-3).all()
        assert net(x, sigma, told.unconditional()).equal(expected)
        told.drop_(1)
        assert net(x, sigma, told)[1].allclose(expected[1], atol=1e-5)


@of_every_backbone
def test_angles_of_zero_make_it_the_network_without_text(backbone):
    plain, (x, sigma) = dataclasses.replace(backbone, text=None), inputs()
    alone = open_network(plain)
    told = dataclasses.replace(backbone.text, pooled=0)
    net = Precond(PrecondConfig(backbone=dataclasses.replace(backbone, text=told)))
    left = net.load_state_dict(alone.state_dict(), strict=False)
    assert left.missing_keys and all(".text_attn." in name for name in left.missing_keys)
    assert not left.unexpected_keys
    tokens = {"tokens": torch.randn(3, 4, 6)}
    assert net(x, sigma, tokens).equal(alone(x, sigma))
    assert "text" not in plain.to_dict() and backbone_from_dict(plain.to_dict()) == plain
    assert backbone_from_dict(backbone.to_dict()) == backbone


@of_every_backbone
def test_every_parameter_of_text_learns_from_the_second_step_of_the_output_on(backbone):
    net = Precond(PrecondConfig(backbone=backbone))
    with torch.no_grad():  # F, which is 0 at the start, is open
        for name, p in net.named_parameters():
            if name.endswith("gain") or "final_layer" in name or "adaLN" in name:
                p.normal_(std=0.3)
    loss, adam = DenoisingLoss(net), torch.optim.Adam(net.parameters(), lr=0.01)
    (images, sigma), told = inputs(), Conditioning(caption(3, 2))
    told.drop_(2)
    is_text = {n: p for n, p in net.named_parameters() if "text_attn" in n or "pooled" in n}
    assert len(is_text) > 4
    for step in range(2):
        adam.zero_grad()
        loss(images, told, sigma, torch.randn_like(images)).loss.mean().backward()
        moved = {name for name, p in is_text.items() if p.grad.any()}
        if step == 0:
            assert 0 < len(moved) < len(is_text)  # the angles, or the last layer, come first
        adam.step()
    assert moved == set(is_text)


@of_every_backbone
def test_tensors_of_text_are_a_group_of_their_own(backbone):
    for with_text in (True, False):
        config = backbone if with_text else dataclasses.replace(backbone, text=None)
        names = Precond(PrecondConfig(backbone=config)).state_dict()
        found = {name for name in names if group_of(name, config.groups) == "text"}
        assert found == {name for name in names if "text_attn" in name or "pooled" in name}
        assert bool(found) == with_text


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.2])
def test_magnitudes_are_one_on_white_noise_at_any_angle(angle):
    net, x = PixelTextAttention(128, length=64, num_heads=2), torch.randn(48, 128, 8, 8)
    net.angles.data.fill_(angle)
    told = Conditioning({"tokens": torch.randn(48, 7, 64)})
    told["tokens"][::3, 2:] = 0  # shorter captions, and none
    told["tokens"][::4] = 0
    text = text_of(told, TextConfig(tokens=64, num_tokens=12), x)
    seen = {}
    for name, module in net.named_modules():
        module.register_forward_hook(lambda m, args, out, name=name: seen.update({name: out}))
    with Meter(net) as meter, torch.no_grad():
        net(x, text)
    found = {m.name: (m.resolution, m.expected) for m in meter.magnitudes()}
    assert found == {"": ("8x8", 1), "q": ("64", 1), "kv": ("13", 1), "proj": ("64", 1)}
    for name, y in seen.items():
        assert y.square().mean().sqrt().item() == pytest.approx(1, abs=0.05), name
    for layer in mp_layers(net):
        layer.weight.data.mul_(3)
    normalize_weights_(net)
    for layer in mp_layers(net):
        assert layer.weight.square().mean().item() == pytest.approx(1, rel=1e-5)


def test_pooled_vectors_and_their_null_form_have_magnitude_one():
    layer, pooled = MPConv(64 + 1, 256), torch.randn(64, 64)
    for vectors in (pooled, torch.zeros(64, 64)):
        y = layer(with_null_flag(vectors))
        assert y.square().mean().sqrt().item() == pytest.approx(1, abs=0.05)


def test_work_of_text_is_counted():
    plain = dataclasses.replace(UNET, text=None)
    got = count_macs(UNET).total - count_macs(plain).total
    blocks, width, pixels, tokens = 4, 32, 16, 4 + 1
    each = 2 * pixels * width**2 + tokens * 7 * 2 * width + 2 * pixels * tokens * width
    assert got == blocks * each + 7 * UNET.emb_channels


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_sees_tokens_that_it_cannot_hold(dtype):
    net, (x, sigma), told = open_network(UNET, dtype=dtype), inputs(), caption(3, 2)
    exact = open_network(UNET)
    exact.load_state_dict(net.state_dict())
    torch.testing.assert_close(net(x, sigma, told), exact(x, sigma, told), rtol=0.1, atol=0.1)
    tiny = {"tokens": torch.full((3, 1, 6), 1e-9)}  # 0 in float16, and yet not padding
    assert not net(x, sigma, tiny).equal(net(x, sigma))


def test_prepared_copies_read_text():
    net, (x, sigma), told = open_network(UNET), inputs(), caption(3, 2)
    torch.testing.assert_close(net.prepared()(x, sigma, told), net(x, sigma, told))


def test_a_network_with_text_traces_without_a_graph_break():
    text = dataclasses.replace(UNET.text, attn_resolutions=(8,))
    small = dataclasses.replace(UNET, channel_mult=(2,), text=text)
    net, (x, sigma), told = open_network(small), inputs(), Conditioning(caption(3, 2))
    loss, noise = DenoisingLoss(net), torch.randn_like(x)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = loss(x, told, sigma, noise).loss
    got = compiled(x, told, sigma, noise).loss
    got.sum().backward()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: TextConfig(), r"text.pooled or text.tokens must be above 0, got 0 for both"),
        (lambda: TextConfig(tokens=4, num_tokens=0), r"text.num_tokens must lie between 1"),
        (lambda: UNetText(tokens=4), r"text.attn_resolutions must be given with text.tokens"),
        (lambda: UNetText(pooled=4, attn_resolutions=(8,)), r"and only then, got \[8\] with 0"),
        (
            lambda: dataclasses.replace(UNET, text=UNetText(tokens=4, attn_resolutions=(16,))),
            r"must be among the resolutions \[8, 4\] of the network, got 16",
        ),
        (
            lambda: dataclasses.replace(UNET, text=UNetText(tokens=4, attn_resolutions=(8,)),
                                        model_channels=24, head_channels=48),
            "must have a multiple of head_channels = 48 channels, got 24",
        ),
        (
            lambda: backbone_from_dict({**UNET.to_dict(), "text": {"pooled": "6"}}),
            "pooled must be int, found '6'",
        ),
        (
            lambda: Tokens(4, 6).check(torch.zeros(2, 6), torch.zeros(2, 1, 8, 8)),
            r"tokens must be \[2, T, 6\] here, got \[2, 6\]",
        ),
    ],
)  # fmt: skip
def test_text_that_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
