"""Configs A to F: against an independent implementation, and against the tables of the paper."""

import dataclasses

import numpy as np
import pytest
import torch
from reference_ladder import network

from edm2lite.diffusion.measure import measure_denoiser
from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.flops import count_macs
from edm2lite.network.ladder.config import NETWORKS, LadderConfig
from edm2lite.network.layers import mp_layers, normalize_weights_
from edm2lite.network.magnitudes import by_bucket, copies, relative_updates
from edm2lite.network.unet import UNetConfig

MPARAMS = {"a": 295.9027, "b": 291.7578, "c": 277.8165, "d": 277.8165, "e": 277.8165,
           "f": 280.2127, "g": 280.2128}  # fmt: skip
GFLOPS = {"a": 110.4, "b": 100.4, "c": 100.3, "d": 101.2, "e": 101.2, "f": 102.1, "g": 102.2}
OWN_LAYERS = "acdef"  # B is the network of A


def small(rung, **changes):
    shape = {
        "img_resolution": 4, "img_channels": 2, "label_dim": 3, "model_channels": 8,
        "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (2,), "head_channels": 8,
    }  # fmt: skip
    return LadderConfig(rung=rung, **{**shape, **changes})


def full(rung):
    shape = {"img_resolution": 64, "img_channels": 4, "label_dim": 1000, "model_channels": 192}
    if rung == "g":
        return UNetConfig(**shape)
    return LadderConfig(
        rung=rung, **shape, attn_resolutions=(32, 16, 8) if rung == "a" else (16, 8)
    )


def disturbed(rung):
    """A network in float64 none of whose layers is zero, with input, and its weights for NumPy."""
    net = small(rung).build().double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    x, c_noise = torch.randn(2, 2, 4, 4).double(), torch.tensor([-0.7, 0.4]).double()
    weights = {name: value.numpy().copy() for name, value in net.state_dict().items()}
    return net, x, c_noise, weights


def reference(weights, x, c_noise, labels, rung):
    return network(weights, x.numpy(), c_noise.numpy(), np.eye(3)[labels], rung, head_channels=8)


@pytest.mark.parametrize("rung", OWN_LAYERS)
def test_outputs_are_those_of_the_reference(rung):
    net, x, c_noise, weights = disturbed(rung)
    found = net(x, c_noise, Conditioning({"label": torch.tensor([2, 0])})).detach().numpy()
    expected = reference(weights, x, c_noise, [2, 0], rung)
    assert np.abs(expected).max() > 0.5
    # labels enter in float32; from D on, weights are normalized in float32
    np.testing.assert_allclose(found, expected, atol=1e-6 if rung < "d" else 1e-5, rtol=0)


@pytest.mark.parametrize("rung", "ac")
def test_gradients_are_finite_differences_of_the_reference(rung):
    """Along a random direction of all tensors of a kind, such as every ``attn_qkv.weight``."""
    net, x, c_noise, weights = disturbed(rung)
    weights["x"] = x.numpy()
    x.requires_grad_(True)
    F_x = net(x, c_noise, Conditioning({"label": torch.tensor([1, 2])}))
    out = torch.randn_like(F_x)
    (F_x * out).sum().backward()
    gradients = {"x": x.grad, **{name: p.grad for name, p in net.named_parameters()}}
    rng = np.random.default_rng(0)
    kinds = sorted({".".join(name.split(".")[-2:]) for name in gradients})
    assert len(kinds) > 10
    for kind in kinds:
        step = {n: rng.standard_normal(g.shape) for n, g in gradients.items() if n.endswith(kind)}
        values = []
        for h in (1e-5, -1e-5):
            moved = {**weights, **{n: weights[n] + h * s for n, s in step.items()}}
            F_moved = reference(moved, torch.from_numpy(moved.pop("x")), c_noise, [1, 2], rung)
            values.append((F_moved * out.numpy()).sum())
        found = sum((gradients[n].numpy() * s).sum() for n, s in step.items())
        expected = (values[0] - values[1]) / 2e-5
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5), kind


@pytest.mark.parametrize("rung", MPARAMS)
def test_parameters_are_those_of_the_table_to_its_last_digit(rung):
    """The table counts the uncertainty head in G alone."""
    config = full(rung)
    with torch.device("meta"):
        count = sum(p.numel() for p in config.build().parameters())
    head = 128 if rung == "g" else 0
    assert f"{(count + head) / 1e6:.4f}" == f"{MPARAMS[rung]:.4f}"


def test_costs_differ_from_rung_to_rung_as_in_the_table():
    """Convolutions, products, and three operations per normalized weight; no element-wise work.

    What is left out is about the same in every rung, 0.6; the table has one decimal.
    """
    counted = {
        rung: count_macs(full(rung)).total / 1e9 + 3 * MPARAMS[rung] / 1000 * (rung >= "d")
        for rung in GFLOPS
    }
    for rung, published in GFLOPS.items():
        assert published - counted[rung] == pytest.approx(0.585, abs=0.15)
    for one, other in zip("abcdef", "bcdefg", strict=True):
        step = GFLOPS[other] - GFLOPS[one]
        assert counted[other] - counted[one] == pytest.approx(step, abs=0.14)


@pytest.mark.parametrize("rung", NETWORKS)
def test_only_a_and_b_are_zero_at_initialization(rung):
    net, told = small(rung).build(), Conditioning({"label": torch.tensor([0, 1])})
    F_x = net(torch.randn(2, 2, 4, 4), torch.zeros(2), told)
    assert bool(F_x.any()) == (rung >= "c")
    assert all(p.abs().max() > 0 for n, p in net.named_parameters() if "bias" not in n) == (
        rung >= "c"
    )
    assert any("bias" in n for n, _ in net.named_parameters()) == (rung < "c")


def test_layers_of_a_start_as_adm_has_them():
    net = small("a", model_channels=64, label_dim=900, head_channels=64).build()
    block = next(iter(net.dec.values()))
    for layer in (block.conv_res0, net.emb_noise, block.emb_linear):
        bound = layer.weight[0].numel() ** -0.5
        for values in (layer.weight, layer.bias):
            assert 0.9 * bound < values.abs().max() <= bound
            assert values.square().mean().sqrt().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert net.emb_label.weight.square().mean().item() == pytest.approx(1, rel=0.02)
    for layer in (block.conv_res1, block.attn_proj, net.out_conv):
        assert not layer.weight.any() and not layer.bias.any()


@pytest.mark.parametrize("rung", NETWORKS)
def test_forced_weight_norm_is_of_e_and_f_alone(rung):
    """Head included: the uncertainty is made of the layers of its network."""
    net = Precond(PrecondConfig(backbone=small(rung)))
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.5)
    before = copies(net)
    normalize_weights_(net)
    changed = {name for name, update in relative_updates(net, before).items() if update > 0}
    layers = {name for name, _ in net.named_modules() if "norm" not in name} & before.keys()
    assert changed == (layers if rung in "ef" else set())
    assert bool(list(mp_layers(net))) == (rung >= "d")


def test_weights_of_d_have_no_length_to_the_output():
    net = small("d").build()
    x, told = torch.randn(2, 2, 4, 4), Conditioning()
    before = net(x, torch.zeros(2), told)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(40)
    torch.testing.assert_close(net(x, torch.zeros(2), told), before, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("rung", NETWORKS)
def test_every_rung_can_be_audited(rung):
    net = Precond(PrecondConfig(backbone=small(rung)))
    before = copies(net)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1)
    found = measure_denoiser(
        net, torch.randn(16, 2, 4, 4) / 2, Conditioning({"label": torch.arange(16) % 3})
    )
    blocks = [m for m in found if m.is_block]
    assert len(blocks) == len(net.backbone.blocks())
    assert set(by_bucket(found)) == {"enc 4x4", "enc 2x2", "dec 2x2", "dec 4x4"}
    measured = {m.name for m in found} - {m.name for m in blocks}
    assert measured == before.keys() - {"logvar_linear"}
    assert all(np.isfinite([m.activation, m.largest, m.weight or 0]).all() for m in found)
    updates = relative_updates(net, before)
    zero = {name for name, weight in before.items() if not weight.any()}
    assert updates.keys() == before.keys() - zero and bool(zero) == (rung < "c")
    assert all(0 < update < 10 for update in updates.values())


@pytest.mark.parametrize("rung", NETWORKS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_near_single_precision(rung, dtype):
    config = PrecondConfig(backbone=small(rung))
    net = Precond(config).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    half = Precond(dataclasses.replace(config, dtype=dtype)).eval()
    half.load_state_dict(net.state_dict())
    x, sigma, label = torch.randn(4, 2, 4, 4), torch.tensor([0.1, 0.5, 1, 5]), torch.arange(4) % 3
    expected, found = net(x, sigma, label), half(x, sigma, label)
    assert found.dtype == torch.float32
    rounding = 2.0 ** (-11 if dtype == "float16" else -8)
    assert (found - expected).square().mean().sqrt() < 8 * rounding
    found.square().sum().backward()
    assert all(p.grad.isfinite().all() for n, p in half.named_parameters() if "logvar" not in n)


@pytest.mark.parametrize("rung", OWN_LAYERS)
def test_a_prepared_copy_gives_the_same_images(rung):
    net = Precond(PrecondConfig(backbone=small(rung))).eval()
    x, label = torch.randn(3, 2, 4, 4), torch.tensor([0, -1, 2])
    torch.testing.assert_close(net.prepared()(x, 1.5, label), net(x, 1.5, label))


def test_a_network_without_a_class_sees_none():
    net = small("a").build()
    told = Conditioning({"label": torch.tensor([-1, -1])})
    x = torch.randn(2, 2, 4, 4)
    with torch.no_grad():
        net.out_conv.weight.normal_()
    assert net(x, torch.zeros(2), told).equal(net(x, torch.zeros(2), Conditioning()))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rung": "g"}, "rung must be one of a, b, c, d, e, f, got g; config G is kind unet"),
        ({"model_channels": 6, "head_channels": 6}, "every width must be a multiple of 4"),
        ({"model_channels": 130, "head_channels": 130}, "multiple of 4, and of 32 from 128 on"),
        (
            {"model_channels": 12, "head_channels": 16},
            "a level that attends must have a multiple of head_channels",
        ),
    ],
)
def test_shapes_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small("c", **changes) if "rung" not in changes else small(**changes)


def test_f_has_no_groups_and_takes_any_width():
    assert small("f", model_channels=6, head_channels=6).build()
