"""Winograd's convolution against the direct one: exact in float64, and its rounding in float32."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from open_gains import open_network

from edm2lite.network.kernels.winograd import winograd_conv2d, winograd_is_faster
from edm2lite.network.unet import UNetConfig


@pytest.mark.parametrize("size", [(4, 1), (8, 5), (12, 8)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_is_the_convolution_with_its_derivatives(size, layout):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64).contiguous(memory_format=layout)
    weight = torch.randn(5, 3, 3, 3, dtype=torch.float64)
    inputs = (x.requires_grad_(), weight.requires_grad_())
    results = []
    for conv in (winograd_conv2d, lambda x, w: F.conv2d(x, w, padding=1)):
        y = conv(*inputs)
        first = torch.autograd.grad(y.pow(3).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
        results.append((y, *first, *second))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)


def test_every_pair_of_rows_meets_once():
    """Of a single one in the input and in the filter: exact up to the roots in the matrices."""
    for row, tap in itertools.product(range(8), range(3)):
        x, weight = torch.zeros(1, 1, 8, 1).double(), torch.zeros(1, 1, 3, 3).double()
        x[0, 0, row], weight[0, 0, tap, 1] = 1, 1
        y = winograd_conv2d(x, weight)[0, 0, :, 0]
        expected = torch.eye(8)[row + 1 - tap] if 0 <= row + 1 - tap < 8 else torch.zeros(8)
        torch.testing.assert_close(y, expected.double(), rtol=0, atol=4e-16)


@pytest.mark.parametrize("channels", [64, 256])
def test_rounding_in_float32_is_that_of_well_chosen_points(channels):
    """Measured 6.8e-8 sqrt(channels), oneDNN's direct sums 5e-8, the points 0, +-1, +-2 1.0e-7."""
    torch.manual_seed(0)
    x = torch.randn(2, channels, 16, 16)
    weight = torch.randn(channels, channels, 3, 3) / (9 * channels) ** 0.5
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    rounding = (winograd_conv2d(x, weight) - exact).square().mean().sqrt()
    assert rounding < 8e-8 * channels**0.5


@pytest.mark.parametrize("prepared", [False, True])
def test_it_is_chosen_only_where_it_is_the_convolution(prepared):
    torch.manual_seed(0)
    chosen = 0
    for height, size, channels, dtype in itertools.product(
        (6, 8, 14, 16, 20), (1, 3, 5), (3, 64), (torch.float32, torch.bfloat16, torch.float64)
    ):
        x = torch.randn(1, channels, height, 5).to(dtype)
        weight = torch.randn(channels, channels, size, size) / (size**2 * channels) ** 0.5
        if winograd_is_faster(x, weight.to(dtype), prepared=prepared):
            chosen += 1
            y = winograd_conv2d(x, weight.to(dtype)).double()
            exact = F.conv2d(x.double(), weight.double(), padding=size // 2)
            torch.testing.assert_close(y, exact, rtol=0, atol=5e-6)  # roundings of float32
    assert chosen
    wide = torch.empty(1, 64, 16, 16, device="meta")
    assert not winograd_is_faster(wide, torch.empty(64, 64, 3, 3, device="meta"))  # for CPUs


UNET = UNetConfig(
    img_resolution=16, img_channels=2, label_dim=5, model_channels=64, channel_mult=(1, 1),
    num_blocks=1, attn_resolutions=(8,),
)  # fmt: skip


def recording(graphs):
    def backend(graph, inputs):
        graphs.append(graph.code)
        return graph.forward

    torch._dynamo.reset()
    return backend


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_compiled_training_step_uses_it_in_float32_alone(dtype):
    torch.manual_seed(0)
    net, graphs = open_network(UNET, dtype=dtype), []
    inputs = torch.randn(2, 2, 16, 16), torch.tensor([0.2, 5.0]), torch.tensor([1, 4])
    compiled = torch.compile(net, fullgraph=True, backend=recording(graphs))
    results = []
    for run in (net, compiled):
        y = run(*inputs)
        grads = torch.autograd.grad(y.square().sum(), list(net.backbone.parameters()))
        results.append((y, *grads))
    used = sum("groups = 6" in line for line in graphs[0].splitlines())
    at_16 = 2 * 1 + 1 + 2 * 2  # a block of the encoder, the second half of "up", two of the decoder
    assert used == (at_16 if dtype == "float32" else 0)
    if dtype == "float32":
        # The slope of one gain is a sum that cancels: those of all gains are one vector here.
        gains = [torch.cat([g.flatten() for g in r if g.numel() == 1]) for r in results]
        others = [[g for g in r if g.numel() > 1] for r in results]
        for ours, expected in zip([*others[1], gains[1]], [*others[0], gains[0]], strict=True):
            error = (ours - expected).norm() / expected.norm()
            assert error < 1e-5, error  # about 20 convolutions of 1e-6 each in a row
