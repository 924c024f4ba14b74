"""Micro-batches on copies of normalized weights: losses and gradients of the network itself."""

import dataclasses

import pytest
import torch
from backbones import BACKBONES, TEXT
from open_gains import open_network

from edm2lite.diffusion.objective import DenoisingLoss
from edm2lite.diffusion.precond import Precond
from edm2lite.dtypes import torch_dtype
from edm2lite.network.adapters import LayerRank, add_low_rank
from edm2lite.network.controlnet import Control
from edm2lite.network.kernels.step_weights import StepWeights
from edm2lite.network.layers import MPConv, mp_layers, normalize_weights_
from edm2lite.network.told import examples

NETWORKS = {
    **BACKBONES,
    "text": TEXT["unet"],
    "control": dataclasses.replace(BACKBONES["unet"], controls=(Control(channels=1),)),
}
of_every_network = pytest.mark.parametrize("backbone", NETWORKS.values(), ids=list(NETWORKS))


def micro_batches(backbone):
    torch.manual_seed(1)
    for n in (3, 2):
        images, noise = torch.randn(2, n, 2, 8, 8)
        yield images, examples(backbone.conditions, n, 8, 8), torch.rand(n) + 0.1, noise


def of_network(net, backbone):
    """Losses of the micro-batches, and gradients of all of them."""
    losses = [DenoisingLoss(net)(*batch).loss for batch in micro_batches(backbone)]
    sum(loss.sum() for loss in losses).backward()
    return torch.cat(losses).detach(), gradients(net)


def of_copies(net, step, backbone):
    """The same, on copies of the weights."""
    losses = []
    step.refresh()
    for i, batch in enumerate(micro_batches(backbone)):
        losses.append(DenoisingLoss(step.net)(*batch).loss)
        losses[-1].sum().backward()
        step.collect(is_first=i == 0)
    step.project()
    return torch.cat(losses).detach(), gradients(net)


def gradients(net):
    found = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    return found


def distance(found, expected):
    """Of two sets of gradients: that of a tensor in shares of its norm, root mean square."""
    assert found.keys() == expected.keys()
    shares = [(found[n] - g).norm() / (g.norm() + 1e-6) for n, g in expected.items()]
    return torch.stack(shares).square().mean().sqrt().item()


def step_of(net):
    return StepWeights(net, mp_layers(net), torch_dtype(net.config.dtype))


@of_every_network
def test_losses_and_gradients_are_those_of_the_network(backbone):
    net = open_network(backbone).train()
    step = step_of(net)
    for _ in range(2):
        (losses, slopes), (own, found) = of_network(net, backbone), of_copies(net, step, backbone)
        torch.testing.assert_close(own, losses, rtol=1e-5, atol=1e-4)
        assert distance(found, slopes) < 1e-4  # sums of float32 through 20 layers
        with torch.no_grad():  # and again with other weights
            for p in net.parameters():
                p.add_(torch.randn_like(p), alpha=0.1)
        normalize_weights_(net)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@of_every_network
def test_half_precision_is_as_exact_as_without_copies(backbone, dtype):
    net = open_network(backbone, dtype=dtype).train()
    exact = Precond(dataclasses.replace(net.config, dtype="float32")).train()
    exact.load_state_dict(net.state_dict())
    losses, slopes = of_network(exact, backbone)
    without, slopes_without = of_network(net, backbone)
    own, found = of_copies(net, step_of(net), backbone)
    assert (own - losses).norm() < 2 * (without - losses).norm()  # two samples of one size
    assert distance(found, slopes) < 2 * distance(slopes_without, slopes)


def test_gradients_arrive_at_the_factors_of_adapters():
    net = open_network(BACKBONES["unet"])
    adapters = add_low_rank(net, [LayerRank(pattern="conv", rank=2)])
    for adapter in adapters.values():
        torch.nn.init.normal_(adapter.up)
    step, backbone = step_of(net), BACKBONES["unet"]
    (losses, slopes), (own, found) = of_network(net, backbone), of_copies(net, step, backbone)
    torch.testing.assert_close(own, losses, rtol=1e-5, atol=1e-4)
    assert len(found) == 2 * len(adapters) and distance(found, slopes) < 1e-4
    trained = [name for name, p in step.net.named_parameters() if p.requires_grad]
    assert len(trained) == len(adapters)  # a frozen layer has no gradient


def test_a_frozen_network_with_a_trained_gain_needs_no_way_back():
    net, backbone = open_network(BACKBONES["unet"]).requires_grad_(False), BACKBONES["unet"]
    net.unet.out_gain.requires_grad_(True)
    (_, slopes), (_, found) = of_network(net, backbone), of_copies(net, step_of(net), backbone)
    assert list(found) == ["unet.out_gain"] and distance(found, slopes) < 1e-5


def test_convolutions_of_the_copy_are_in_half_precision_and_channels_last():
    net = open_network(BACKBONES["unet"], dtype="bfloat16")
    for name, p in step_of(net).net.named_parameters():
        if p.ndim == 4:
            assert p.dtype == torch.bfloat16, name
            assert p.is_contiguous(memory_format=torch.channels_last), name


def test_a_part_that_one_micro_batch_does_not_use_has_the_gradient_of_the_others():
    torch.manual_seed(0)
    net = torch.nn.ModuleDict({"a": MPConv(4, 3), "b": MPConv(4, 3), "c": torch.nn.Linear(4, 3)})
    batches = [("a",), ("a", "b", "c"), ("b",)]
    x = torch.randn(5, 4)
    step = StepWeights(net, [net["a"], net["b"]], torch.float32)
    for _ in range(2):  # nothing of a step is left in the next one
        net.zero_grad()
        step.refresh()
        for i, names in enumerate(batches):
            sum(step.net[name](x).square().sum() for name in names).backward()
            step.collect(is_first=i == 0)
        step.project()
    found = {name: p.grad for name, p in net.named_parameters()}
    net.zero_grad()
    for names in batches:
        sum(net[name](x).square().sum() for name in names).backward()
    for name, p in net.named_parameters():
        assert torch.allclose(found[name], p.grad, atol=1e-5), name


def test_a_network_without_layers_that_normalize_is_trained_as_it_is():
    net, x = torch.nn.Sequential(torch.nn.Linear(4, 3)), torch.randn(5, 4)
    step = StepWeights(net, [], torch.float32)
    step.refresh()
    step.net(x).square().sum().backward()
    step.collect(is_first=True)
    step.project()
    found = net[0].weight.grad.clone()
    net.zero_grad()
    net(x).square().sum().backward()
    assert torch.allclose(found, net[0].weight.grad, rtol=1e-6)
