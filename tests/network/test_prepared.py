"""The copy of a network that samples: the same images, and a network that stays as it was."""

import copy

import pytest
import torch
from open_gains import open_network
from torch import nn

from edm2lite.diffusion.objective import DenoisingLoss
from edm2lite.network.kernels.prepared import prepared_copy
from edm2lite.network.layers import MPConv, mp_layers, normalize_weights_
from edm2lite.network.unet import UNetConfig

UNET = UNetConfig(
    img_resolution=8, img_channels=2, label_dim=5, model_channels=16, channel_mult=(1, 2),
    num_blocks=1, attn_resolutions=(4,), head_channels=16,
)  # fmt: skip


def inputs():
    return torch.randn(3, 2, 8, 8), torch.tensor([0.1, 1.0, 10.0]), torch.tensor([4, 0, 2])


def snapshot(net):
    """Everything of a network that sampling could change, with copies of its values."""
    modes = [module.training for module in net.modules()]
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return (
        [type(module) for module in net.modules()],
        modes,
        net.config,
        {
            name: (id(t), t.dtype, t.device, t.stride(), t.requires_grad, t.detach().clone())
            for name, t in tensors.items()
        },
    )


def assert_unchanged(net, before):
    kinds, modes, config, tensors = snapshot(net)
    assert (kinds, modes) == before[:2] and config is before[2]
    assert tensors.keys() == before[3].keys()
    for name, (*what, value) in tensors.items():
        assert what == list(before[3][name][:-1]) and value.equal(before[3][name][-1]), name


@pytest.mark.parametrize("compiled", [False, True])
@torch.no_grad()
def test_prepared_copy_gives_the_same_images(compiled):
    net, (x, sigma, labels) = open_network(UNET), inputs()
    fast = net.prepared(compiled=compiled)
    torch.testing.assert_close(fast(x, sigma, labels), net(x, sigma, labels), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast.logvar(sigma), net.logvar(sigma))
    assert not fast.training and not any(p.requires_grad for p in fast.parameters())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@torch.no_grad()
def test_prepared_copy_computes_in_the_type_that_it_was_made_for(dtype):
    """By the same roundings: of normalized weights, and of what is computed with them."""
    net, (x, sigma, labels) = open_network(UNET), inputs()
    half = open_network(UNET, dtype=dtype)
    half.load_state_dict(net.state_dict())
    fast = net.prepared(dtype=dtype)
    assert fast.config == half.config and net.config.dtype == "float32"
    seen = []
    fast.backbone.dec["8x8_block0"].register_forward_hook(lambda m, a, y: seen.append(y.dtype))
    torch.testing.assert_close(fast(x, sigma, labels), half(x, sigma, labels), rtol=1e-2, atol=2e-2)
    assert seen == [getattr(torch, dtype)]


@pytest.mark.parametrize("training", [False, True])
def test_preparing_and_sampling_change_nothing_of_the_network(training):
    net, (x, sigma, labels) = open_network(UNET).train(training), inputs()
    net.backbone.enc["8x8_block0"].eval()  # a mode of its own
    net.logvar_linear.requires_grad_(False)
    before = snapshot(net)
    for dtype, compiled in ((None, False), ("bfloat16", False), ("float32", True)):
        with torch.no_grad():
            net.prepared(dtype=dtype, device="cpu", compiled=compiled)(x, sigma, labels)
        assert_unchanged(net, before)


@torch.no_grad()
def test_a_prepared_copy_does_not_follow_its_network():
    net, (x, sigma, labels) = open_network(UNET), inputs()
    fast = net.prepared()
    before = fast(x, sigma, labels)
    for p in net.parameters():
        p.add_(1.0)
    for b in net.buffers():
        b.add_(1.0)
    assert fast(x, sigma, labels).equal(before)


def test_training_goes_on_to_the_same_bits_after_sampling():
    results = []
    for sampled in (False, True):
        torch.manual_seed(0)
        net = open_network(UNET).train()
        adam = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(3):
            x, sigma, labels = inputs()
            DenoisingLoss(net)(x, labels, sigma, torch.randn_like(x)).loss.mean().backward()
            if sampled:  # between backward and step: gradients must survive as well
                with torch.no_grad():
                    net.prepared()(x, sigma, labels)
            adam.step()
            adam.zero_grad()
            normalize_weights_(net)
        results.append(net.state_dict())
    for name, value in results[0].items():
        assert value.equal(results[1][name]), name


def test_layers_that_occur_twice_are_prepared_once():
    layer = MPConv(8, 8, (3, 3))
    net = nn.Sequential(layer, nn.SiLU(), layer)
    fast = prepared_copy(net, mp_layers(net), dtype=torch.float32, device=torch.device("cpu"))
    assert fast[0] is fast[2] and fast[1] is not net[1]
    x = torch.randn(2, 8, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net(x), rtol=1e-5, atol=1e-5)


def test_memory_of_a_prepared_copy_is_that_of_its_weights():
    net = open_network(UNET)
    own = {t.untyped_storage().data_ptr() for t in net.state_dict().values()}

    def size_of(module):
        tensors = [*module.parameters(), *module.buffers()]
        assert own.isdisjoint(t.untyped_storage().data_ptr() for t in tensors)
        return sum(t.untyped_storage().nbytes() for t in tensors)

    total = sum(t.untyped_storage().nbytes() for t in [*net.parameters(), *net.buffers()])
    # a doubling convolution is kept as 4x4 of its 3x3
    up = net.backbone.dec["8x8_up"].conv_res0.weight
    assert size_of(net.prepared()) == total + up.numel() * 4 * 7 / 9


def test_a_prepared_copy_can_be_copied_but_not_saved(tmp_path):
    net, (x, sigma, labels) = open_network(UNET), inputs()
    fast = net.prepared()
    with torch.no_grad():
        assert copy.deepcopy(fast)(x, sigma, labels).equal(fast(x, sigma, labels))
    with pytest.raises(ValueError, match="must hold its own weights to be saved"):
        fast.save(tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())
    net.save(tmp_path / "net.safetensors")
