"""Low-rank adapters inside weight normalization, on every network of the library."""

import copy
import math

import numpy as np
import pytest
import torch
from backbones import BACKBONES
from torch import nn
from torch.nn.utils import parametrize

from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.network.adapters import (
    LayerRank,
    adaptable_layers,
    add_deltas,
    add_low_rank,
    deltas_of,
    low_rank_layers,
    merged_state_dict,
)
from edm2lite.network.ladder.config import LadderConfig
from edm2lite.network.layers import MPConv, MPUpConv, normalize_weights_
from edm2lite.network.magnitudes import Meter, copies, relative_updates

SHAPE = {
    "img_resolution": 8, "img_channels": 2, "label_dim": 5, "model_channels": 16,
    "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (4,), "head_channels": 16,
}  # fmt: skip
NETWORKS = {**BACKBONES, **{f"ladder-{r}": LadderConfig(rung=r, **SHAPE) for r in "ace"}}


def awake(backbone):
    """A denoiser none of whose branches is silent, as at initialization many are."""
    net = Precond(PrecondConfig(backbone=backbone)).eval()
    for parameter in net.parameters():
        if parameter.ndim < 2 or not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return net


def adapted(net, rank=3):
    """Its adapters, none of them silent."""
    adapters = add_low_rank(net, [LayerRank(rank=rank)], prefix=net.config.backbone.tensor_prefix)
    for adapter in adapters.values():
        nn.init.normal_(adapter.up, std=0.5)
    return adapters


def output(net):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 2, 8, 8, generator=generator)
    return net(x, torch.tensor([0.3, 2.0]), torch.tensor([1, 4])).detach()


@pytest.mark.parametrize("backbone", NETWORKS.values(), ids=NETWORKS)
def test_a_silent_adapter_changes_no_bit_and_a_merged_one_computes_the_same(backbone, tmp_path):
    net = awake(backbone)
    base, before, names = copy.deepcopy(net), output(net), set(net.state_dict())
    prefix = backbone.tensor_prefix
    adapters = add_low_rank(net, [LayerRank(rank=3)], prefix=prefix)
    assert output(net).equal(before)
    layers = [n for n in adaptable_layers(base) if n.startswith(prefix)]
    assert list(adapters) == layers == list(low_rank_layers(net))
    for adapter in adapters.values():
        nn.init.normal_(adapter.up, std=0.5)
    changed = output(net)
    assert (changed - before).abs().max() > 0.05
    merged = merged_state_dict(net)
    assert set(merged) == names
    base.load_state_dict(Precond.load(net.save(tmp_path / "net.safetensors")).state_dict())
    torch.testing.assert_close(output(base), changed, atol=1e-6, rtol=0)
    torch.testing.assert_close(output(net.prepared()), changed, atol=2e-5, rtol=0)
    assert add_deltas(merged, deltas_of(net), 0.0, "a")["logvar_linear.weight"] is not None


@pytest.mark.parametrize("backbone", NETWORKS.values(), ids=NETWORKS)
def test_only_the_factors_train_and_the_base_is_not_normalized(backbone):
    net = awake(backbone)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    adapters = adapted(net)
    trained = [name for name, p in net.named_parameters() if p.requires_grad]
    assert all(name.endswith((".down", ".up")) for name in trained)
    assert len(trained) == 2 * len(adapters)
    with torch.no_grad():
        for adapter in adapters.values():
            adapter.down.mul_(2)
    normalize_weights_(net)
    after = net.state_dict()
    for name, value in before.items():
        stored = name.removesuffix("weight") + "parametrizations.weight.original"
        assert after[stored if stored in after else name].equal(value)
    for name, adapter in adapters.items():
        rms = adapter.down.detach().flatten(1).square().mean(1).sqrt()
        expected = 1.0 if adapter.is_fixed else None
        if expected is not None:
            torch.testing.assert_close(rms, torch.ones_like(rms))
        assert adapter.is_fixed == getattr(net.get_submodule(name), "has_fixed_length", False)


def test_an_adapted_convolution_is_that_of_the_formula():
    """``unit rows of W0 + s B A``, convolved, in float64 NumPy."""
    net = nn.Sequential(MPConv(6, 5, (3, 3), in_rms=0.6, out_rms=0.4)).double()
    (adapter,) = add_low_rank(net, [LayerRank(rank=2, alpha=3.0)]).values()
    nn.init.normal_(adapter.up)
    x = torch.randn(2, 6, 7, 4, dtype=torch.float64)
    layer = net[0]
    w0 = layer.parametrizations.weight.original.detach().numpy().reshape(5, -1)
    a, b = adapter.down.detach().numpy().reshape(2, -1), adapter.up.detach().numpy()
    w = w0 + 3.0 / 2 * b @ a
    w = w / (1e-4 + np.sqrt((w**2).mean(1, keepdims=True))) * (0.4 / 0.6 / math.sqrt(6 * 9))
    w = w.reshape(5, 6, 3, 3)
    padded = np.pad(x.numpy(), [(0, 0), (0, 0), (1, 1), (1, 1)])
    expected = sum(
        np.einsum("oi,nihw->nohw", w[:, :, i, j], padded[:, :, i : i + 7, j : j + 4])
        for i in range(3)
        for j in range(3)
    )
    # weights are normalized in float32
    np.testing.assert_allclose(net(x).detach().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("make", [lambda: MPConv(4, 40, (3, 3)), lambda: MPUpConv(4, 40)])
def test_at_full_rank_a_step_of_sgd_is_that_on_the_whole_weight(make):
    """dL/dB = s G A^T, so s B A moves by -lr s^2 G A^T A, which is -lr G.

    For A^T A is fan_in, and s^2 is 1 / fan_in. A has no gradient at B = 0. The weights then are
    equal, and so are the outputs.
    """
    whole = nn.Sequential(make())
    factored = copy.deepcopy(whole)
    fan_in = 36
    entry = LayerRank(rank=fan_in, alpha=math.sqrt(fan_in))  # s = 1 / sqrt(fan_in)
    (adapter,) = add_low_rank(factored, [entry]).values()
    assert len(adapter.down) == fan_in
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        target = torch.randn_like(whole(x))
    for net in (whole, factored):
        (net(x) - target).square().sum().backward()
        torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.05).step()
    before = whole[0].weight - factored[0].parametrizations.weight.original
    assert before.abs().max() > 0.01  # the step is not small against the tolerance
    torch.testing.assert_close(factored[0].weight, whole[0].weight, atol=2e-6, rtol=0)
    torch.testing.assert_close(factored(x), whole(x), atol=5e-6, rtol=0)


def test_patterns_choose_layers_ranks_and_scales():
    net = awake(BACKBONES["unet"])
    entries = [LayerRank(pattern="attn_", rank=2, alpha=8.0), LayerRank(pattern=r"\.enc\.", rank=5)]
    adapters = add_low_rank(net, entries, prefix="unet.")
    ranks = {name: (len(a.down), a.scale) for name, a in adapters.items()}
    assert ranks["unet.enc.4x4_block0.attn_qkv"] == (2, 4.0)
    assert ranks["unet.enc.4x4_block0.conv_res0"] == (5, 1.0)
    assert "unet.dec.8x8_block0.conv_res0" not in ranks and "logvar_linear" not in ranks
    again = awake(BACKBONES["unet"])
    other = add_low_rank(again, [LayerRank(rank=5)], prefix="unet.")
    name = "unet.enc.4x4_block0.conv_res0"  # A is a function of seed and name alone
    assert other[name].down.equal(adapters[name].down)
    with pytest.raises(ValueError, match="adapted once"):
        add_low_rank(again, prefix="unet.")
    with pytest.raises(ValueError, match="'nowhere' is in none of"):
        add_low_rank(again, [LayerRank(pattern="nowhere")])
    with pytest.raises(ValueError, match="regular expression"):
        LayerRank(pattern="(")


def test_a_network_of_ones_own_is_adapted_too():
    net = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    index, name = torch.tensor([1, 6]), "3"
    before = net(index)
    (adapter,) = add_low_rank(net, [LayerRank(pattern="^3$", rank=1)]).values()
    nn.init.normal_(adapter.up)
    hidden = net[:3](index)
    expected = before + hidden @ adapter.factors.delta().T
    torch.testing.assert_close(net(index), expected)
    assert not parametrize.is_parametrized(net[1]) and list(low_rank_layers(net)) == [name]


def test_adapted_layers_are_measured_like_others():
    net = awake(BACKBONES["unet"])
    before, weights = len(layer_magnitudes(net)), copies(net)
    adapters = adapted(net)
    found = layer_magnitudes(net)
    assert len(found) == before and set(weights) == set(copies(net))
    updates = relative_updates(net, weights)
    assert set(updates) >= set(adapters)
    layer = "unet.enc.4x4_block0.conv_res0"
    step = net.get_submodule(layer).weight - weights[layer]
    expected = step.square().mean().sqrt() / weights[layer].square().mean().sqrt()
    assert updates[layer] == pytest.approx(expected.item(), rel=1e-5)


def layer_magnitudes(net):
    with Meter(net) as meter:
        output(net)
    return [m for m in meter.magnitudes({}) if not m.is_block]


def test_deltas_for_other_layers_are_refused():
    tensors = {"a.weight": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match="x must adapt layers of the model, which has no b"):
        add_deltas(tensors, {"b": torch.zeros(2, 3)}, 1.0, "x")
    with pytest.raises(ValueError, match=r"a has \[2, 3\] in the model and \[3, 3\]"):
        add_deltas(tensors, {"a": torch.zeros(3, 3)}, 1.0, "x")
    assert tensors["a.weight"].equal(torch.zeros(2, 3))
