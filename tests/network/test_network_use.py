"""What people do with a network: transform, compile, checkpoint, copy, share, distribute it."""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from backbones import BACKBONES
from open_gains import open_network
from torch import nn
from torch.utils.checkpoint import checkpoint

from edm2lite.diffusion.objective import DenoisingLoss
from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.layers import MPConv, normalize_weights_
from edm2lite.network.unet import UNetConfig

UNET = BACKBONES["unet"]
of_every_backbone = pytest.mark.parametrize("backbone", BACKBONES.values(), ids=list(BACKBONES))


def inputs():
    return torch.randn(3, 2, 8, 8), torch.tensor([0.1, 1.0, 10.0]), torch.tensor([4, 0, 2])


@of_every_backbone
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, on first use
def test_jvp_is_the_directional_derivative(backbone):
    net, (x, sigma, labels) = open_network(backbone).double(), inputs()
    along, ahead = torch.randn_like(x), torch.ones(3)

    def at(x, sigma):
        return net(x, sigma, labels)

    _, got = torch.func.jvp(at, (x, sigma), (along, ahead))
    h = 1e-2
    ends = [net(x + s * h * along, sigma + s * h * ahead * 0.1, labels) for s in (1, -1)]
    _, scaled = torch.func.jvp(at, (x, sigma), (along, 0.1 * ahead))
    expected = (ends[0] - ends[1]) / (2 * h)
    # float32 differences over 0.02: truncation and rounding are both a few 1e-3
    assert (scaled - expected).norm() < 0.02 * expected.norm()
    assert (got - scaled).norm() > 0.1 * expected.norm()  # the noise level matters too


@of_every_backbone
def test_vjp_and_functional_call_give_the_gradients_of_backward(backbone):
    net, (x, sigma, labels) = open_network(backbone), inputs()
    seen = torch.randn(3, 2, 8, 8)
    (net(x.requires_grad_(), sigma, labels) * seen).sum().backward()
    _, pull = torch.func.vjp(lambda x: net(x, sigma, labels), x.detach())
    torch.testing.assert_close(pull(seen)[0], x.grad)

    def loss(parameters):
        y = torch.func.functional_call(net, parameters, (x.detach(), sigma, labels))
        return (y * seen).sum()

    slopes = torch.func.grad(loss)({n: p.detach() for n, p in net.named_parameters()})
    for name, p in net.named_parameters():
        if p.grad is not None:  # logvar is not part of D
            torch.testing.assert_close(slopes[name], p.grad, rtol=1e-4, atol=1e-5)


def body():
    """The U-Net in float64, its input, and a direction."""
    torch.manual_seed(0)
    unet = open_network(UNET).double().unet
    c_noise, told = torch.tensor([0.3, -0.2]).double(), Conditioning.of(torch.tensor([1, 3]))
    x, along = torch.randn(2, 2, 2, 8, 8).double()
    return lambda x: unet(x, c_noise[: len(x)], told.rows(slice(len(x)))), x, along


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_second_derivatives_agree_however_they_are_taken():
    call, x, along = body()

    def value(x):
        return call(x).square().sum()

    def slope(x):
        return torch.func.jvp(value, (x,), (along,))[1]

    h = 1e-4
    expected = (slope(x + h * along) - slope(x - h * along)) / (2 * h)
    twice_forward = torch.func.jvp(slope, (x,), (along,))[1]
    forward_over_reverse = torch.func.jvp(torch.func.grad(value), (x,), (along,))[1]
    given = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(value(given), given, create_graph=True)
    (plain,) = torch.autograd.grad((first * along).sum(), given)
    for got in (twice_forward, (forward_over_reverse * along).sum(), (plain * along).sum()):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(forward_over_reverse, plain, rtol=1e-9, atol=1e-9)


def test_gradients_of_every_sample_equal_those_of_a_loop():
    call, x, _ = body()

    def value(one):
        return call(one[None]).square().sum()

    torch.testing.assert_close(
        torch.func.vmap(torch.func.grad(value))(x),
        torch.stack([torch.func.grad(value)(one) for one in x]),
    )


@of_every_backbone
def test_vmap_over_two_sets_of_weights_gives_both_networks(backbone):
    nets, (x, sigma, labels) = [open_network(backbone), open_network(backbone)], inputs()
    stacked, buffers = torch.func.stack_module_state(nets)
    labels = nn.functional.one_hot(labels, 5).float()

    def call(parameters, buffers):
        return torch.func.functional_call(nets[0], (parameters, buffers), (x, sigma, labels))

    both = torch.func.vmap(call)(stacked, buffers)
    for got, net in zip(both, nets, strict=True):
        torch.testing.assert_close(got, net(x, sigma, labels), rtol=1e-4, atol=1e-5)


@of_every_backbone
def test_activation_checkpointing_gives_the_same_gradients(backbone):
    net, (x, sigma, labels) = open_network(backbone), inputs()
    net(x, sigma, labels).square().sum().backward()
    expected = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    checkpoint(net, x, sigma, labels, use_reentrant=False).square().sum().backward()
    for name, slope in expected.items():
        torch.testing.assert_close(net.get_parameter(name).grad, slope)


def test_no_grad_pass_between_forward_and_backward_changes_no_gradient():
    net, (x, sigma, labels) = open_network(UNET).train(), inputs()
    loss = net(x, sigma, labels).square().sum()
    loss.backward(retain_graph=True)
    expected = net.backbone.out_conv.weight.grad.clone()
    net.zero_grad()
    with torch.no_grad():
        net(x * 2, sigma, labels)
    loss.backward()
    assert net.backbone.out_conv.weight.grad.equal(expected)


def test_copies_and_shared_layers_stay_themselves():
    net, (x, sigma, labels) = open_network(UNET).train(), inputs()
    twin = copy.deepcopy(net)
    assert twin(x, sigma, labels).equal(net(x, sigma, labels))
    layer = MPConv(16, 16)
    shared = nn.ModuleList([layer, layer])
    y = shared[1](shared[0](torch.randn(4, 16)))
    y.sum().backward()  # one weight used twice
    normalize_weights_(shared)
    assert layer.weight.grad is not None and len(list(shared.parameters())) == 1


@of_every_backbone
def test_evaluating_an_average_in_training_mode_leaves_it_alone(backbone):
    net, (x, sigma, labels) = open_network(backbone).train(), inputs()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(0.7)  # averages of rows of norm 1 are shorter
    before = [p.clone() for p in net.parameters()]
    net(x, sigma, labels)
    assert all(p.equal(b) for p, b in zip(net.parameters(), before, strict=True))


@of_every_backbone
def test_whole_network_traces_without_a_graph_break_forward_and_backward(backbone):
    net, (x, sigma, labels) = open_network(backbone), inputs()
    compiled = torch.compile(DenoisingLoss(net), fullgraph=True, backend="aot_eager")
    noise = torch.randn_like(x)
    for images, level in ((x, sigma), (x[:, :, :4], sigma + 1)):  # also another shape
        net.zero_grad()
        expected = DenoisingLoss(net)(images, labels, level, noise[:, :, : images.shape[2]]).loss
        expected.sum().backward()
        slopes = {n: p.grad.clone() for n, p in net.named_parameters()}
        net.zero_grad()
        got = compiled(images, labels, level, noise[:, :, : images.shape[2]]).loss
        got.sum().backward()
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)
        for name, slope in slopes.items():
            torch.testing.assert_close(
                net.get_parameter(name).grad, slope, rtol=1e-4, atol=1e-4 * slope.abs().max()
            )


@pytest.mark.slow
def test_compiled_network_equals_the_eager_one_to_rounding():
    config = UNetConfig(
        img_resolution=4, img_channels=1, label_dim=2, model_channels=8, channel_mult=(1,),
        num_blocks=1, attn_resolutions=(4,), head_channels=8,
    )  # fmt: skip
    torch.compiler.reset()  # shapes that other tests compiled for would make ours dynamic
    net = open_network(config)
    x, sigma, labels = torch.randn(2, 1, 4, 4), torch.tensor([0.1, 3.0]), torch.tensor([1, 0])
    expected = net(x.requires_grad_(), sigma, labels)
    expected.square().sum().backward()
    slope = x.grad.clone()
    x.grad = None
    got = torch.compile(net, fullgraph=True)(x, sigma, labels)
    got.square().sum().backward()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad, slope, rtol=1e-4, atol=1e-4)


@of_every_backbone
def test_prepared_network_traces_without_a_graph_break(backbone):
    net, (x, sigma, labels) = open_network(backbone).prepared(), inputs()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, sigma, labels), net(x, sigma, labels))


@pytest.mark.slow
def test_ddp_and_fsdp_give_the_gradients_of_one_process():
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = Path(__file__).with_name("distributed_network.py")
    done = subprocess.run(
        [sys.executable, *command, str(script)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(script.parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_condition_images_that_do_not_fit_are_refused():
    config = UNetConfig(**{**UNET.__dict__, "cond_channels": 3})
    net, (x, sigma, labels) = open_network(config), inputs()
    image = torch.randn(3, 3, 8, 8)
    with pytest.raises(ValueError, match="image must be given: .* a condition image of 3 channels"):
        net(x, sigma, labels)
    with pytest.raises(
        ValueError, match=r"condition image must be \[3, 3, 8, 8\] .* \[2, 3, 8, 8\]"
    ):
        net(x, sigma, {"label": labels, "image": image[:2]})
    with pytest.raises(ValueError, match="takes label besides x and sigma, got image"):
        open_network(UNET)(x, sigma, {"label": labels, "image": image})


def test_continuous_condition_of_norm_one_keeps_the_embedding_at_magnitude_one():
    config = UNetConfig(**{**UNET.__dict__, "label_dim": 64, "model_channels": 64})
    net = Precond(PrecondConfig(backbone=config))
    vectors = nn.functional.normalize(torch.randn(512, 64), dim=1)
    emb = net.backbone.embed(torch.randn(512), Conditioning.of(vectors))
    assert emb.square().mean().sqrt().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 3, 8, 8), (1, 2, 8, 7)])
def test_images_that_do_not_fit_are_refused(shape):
    with pytest.raises(
        ValueError, match=r"images must be \[N, 2, H, W\] with H and W multiples of 2"
    ):
        open_network(UNET)(torch.randn(shape), 1.0)


@of_every_backbone
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_runs_on_a_cpu_with_float32_around_it(backbone, dtype):
    net, (x, sigma, labels) = open_network(backbone, dtype=dtype), inputs()
    seen = {}
    for name, module in net.named_modules():
        if isinstance(module, MPConv | nn.Linear):
            module.register_forward_hook(
                lambda m, args, out, name=name: seen.update({name: (args[0].dtype, out.dtype)})
            )
    loss = DenoisingLoss(net)(x, labels, sigma, torch.randn_like(x)).loss
    loss.sum().backward()
    float32 = "emb_noise|emb_label|emb_linear|modulation|t_embedder|logvar_linear"
    for name, dtypes in seen.items():
        wanted = torch.float32 if re.search(float32, name) else getattr(torch, dtype)
        assert dtypes == (wanted, wanted), name
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in net.parameters())
    assert all(p.grad.isfinite().all() for p in net.parameters())
    assert net.prepared()(x, sigma, labels).dtype == torch.float32


def test_activations_are_clipped_before_half_precision_overflows():
    net, (x, sigma, labels) = open_network(UNET, dtype="float16"), inputs()
    block = net.backbone.enc["8x8_block0"]
    with torch.no_grad():
        block.emb_gain.fill_(300)
    largest = []
    block.register_forward_hook(lambda m, a, out: largest.append(out.abs().max().item()))
    assert net(x, sigma, labels).isfinite().all()
    assert largest == [256]
