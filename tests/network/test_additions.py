"""Learned classes and hypernetworks: parts that leave the network of any kind as it is."""

import dataclasses

import pytest
import torch
from backbones import BACKBONES
from torch import nn

from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.network.additions import num_classes
from edm2lite.network.layers import normalize_weights_

X = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def awake(backbone):
    """A denoiser none of whose branches is silent, as at initialization many are."""
    torch.manual_seed(0)
    net = Precond(PrecondConfig(backbone=backbone)).eval()
    for name, parameter in net.named_parameters():
        if (parameter.ndim < 2 or not parameter.any()) and "emb_hyper" not in name:
            nn.init.normal_(parameter, std=0.3)
    return net


def with_fields(name, **fields):
    """A network, and one with the same weights and some parts more."""
    base = awake(BACKBONES[name])
    more = awake(dataclasses.replace(BACKBONES[name], **fields))
    more.load_state_dict(base.state_dict(), strict=False)
    return base, more


@pytest.mark.parametrize("name", BACKBONES)
def test_learned_classes_leave_the_others_to_the_last_bit(name):
    base, more = with_fields(name, learned_classes=(5, 2))
    others = torch.tensor([0, 4, -1])
    for label in (others, None):
        assert more(X, 0.7, label).equal(base(X, 0.7, label))
    vectors = torch.eye(6)[[0, 4, 3]]
    assert more(X, 0.7, vectors).equal(base(X, 0.7, vectors[:, :5]))
    assert more.config.backbone.conditions[0].num_classes == 6
    replaced = more(X, 0.7, torch.tensor([2, 2, 2]))
    assert (replaced - base(X, 0.7, torch.tensor([2, 2, 2]))).abs().max() > 1e-3
    learned = more.backbone.emb_learned
    torch.testing.assert_close(
        replaced, more(X, 0.7, torch.eye(6)[[2, 2, 2]]), atol=1e-6, rtol=1e-6
    )
    with torch.no_grad():
        known = more.backbone.known_classes(torch.eye(5))
        learned.start_(known[[3]])
    if name != "dit":  # whose vectors have no fixed length
        rms = learned.weight.square().mean(1).sqrt().detach()
        torch.testing.assert_close(rms, torch.ones(2))
    like = more(X, 0.7, torch.tensor([5, 5, 5]))
    # the class it began with, whose vector has a magnitude of about 1
    torch.testing.assert_close(like, base(X, 0.7, torch.tensor([3, 3, 3])), atol=0.25, rtol=0.25)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_hypernetwork_begins_silent_and_keeps_the_magnitude(name):
    base, more = with_fields(name, hypernetwork=2)
    label = torch.tensor([0, 4, -1])
    assert more(X, 0.7, label).equal(base(X, 0.7, label))
    hyper = more.backbone.emb_hyper
    nn.init.constant_(hyper.angles, 0.6)
    c = torch.randn(64, len(hyper.angles))
    assert hyper(c).square().mean().sqrt().item() == pytest.approx(1, abs=0.1)
    torch.testing.assert_close(
        hyper(c), c * torch.tensor(0.6).cos() + torch.tensor(0.6).sin() * branch(hyper, c)
    )
    assert not more(X, 0.7, label).equal(base(X, 0.7, label))
    torch.testing.assert_close(
        more.prepared()(X, 0.7, label), more(X, 0.7, label), atol=2e-5, rtol=1e-5
    )


def branch(hyper, c):
    return hyper.fc2(torch.nn.functional.silu(hyper.fc1(c)))


def test_rows_of_learned_classes_are_held_at_rms_1():
    _, more = with_fields("unet", learned_classes=(5,))
    learned = more.backbone.emb_learned
    with torch.no_grad():
        learned.weight.mul_(3)
    before = more(X, 0.7, torch.tensor([5, 5, 5]))
    more.requires_grad_(False)
    normalize_weights_(more)
    assert learned.weight.square().mean() > 2  # frozen
    learned.requires_grad_(True)
    normalize_weights_(more)
    assert learned.weight.square().mean().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(more(X, 0.7, torch.tensor([5, 5, 5])), before, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("classes", [(), (-1,), (6,), (3, 3), (5, 5)])
def test_classes_are_those_that_there_are_or_the_next_ones(classes):
    with pytest.raises(ValueError, match="learned_classes must be"):
        num_classes(5, classes)
    with pytest.raises(ValueError, match="learned_classes must be"):
        dataclasses.replace(BACKBONES["unet"], learned_classes=classes)


def test_files_of_networks_without_additions_do_not_name_them():
    for backbone in BACKBONES.values():
        assert not {"learned_classes", "hypernetwork"} & backbone.to_dict().keys()
        more = dataclasses.replace(backbone, learned_classes=(5,), hypernetwork=1)
        config = PrecondConfig(backbone=more)
        assert PrecondConfig.from_json(config.to_json()) == config
