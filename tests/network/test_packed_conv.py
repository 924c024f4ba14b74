"""Convolutions with packed weights against torch's own, and when they are used."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from edm2lite.network.kernels.packed_conv import PackedConv, PackedUpConv, PackedWinograd
from edm2lite.network.layers import MPConv, MPUpConv

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch without oneDNN"
)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("shape", [(1, 5, 16, 16), (3, 48, 8, 8), (64, 32, 4, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_it_is_the_convolution(kernel, shape, layout):
    torch.manual_seed(0)
    x, weight = torch.randn(shape), torch.randn(24, shape[1], kernel, kernel)
    y = PackedConv(weight, x)(x.contiguous(memory_format=layout))
    expected = F.conv2d(x.double(), weight.double(), padding=kernel // 2)
    # Sums of up to 432 products of order 1 in float32.
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 5, 16, 16), (3, 48, 8, 8), (64, 32, 4, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_doubling_and_winograd_are_the_convolutions(shape, layout):
    torch.manual_seed(0)
    x, weight = torch.randn(shape), torch.randn(24, shape[1], 3, 3)
    y = PackedWinograd(weight, x)(x.contiguous(memory_format=layout))
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-4)
    up = torch.randn(shape[1], 24, 4, 4)
    y = PackedUpConv(up, x)(x.contiguous(memory_format=layout))
    expected = F.conv_transpose2d(x.double(), up.double(), stride=2, padding=1)
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-4)


def layer(*, prepared):
    torch.manual_seed(0)
    conv = MPConv(8, 4, (3, 3)).requires_grad_(False)
    if prepared:
        conv.prepare(torch.float32)
    return conv


@torch.no_grad()
def test_a_prepared_layer_packs_for_the_shape_that_comes():
    conv, plain = layer(prepared=True), layer(prepared=False)
    for shape in ((2, 8, 4, 4), (5, 8, 6, 2), (2, 8, 4, 4)):
        x = torch.randn(shape)
        torch.testing.assert_close(conv(x), plain(x), rtol=1e-5, atol=1e-5)
        assert conv._packed is not None
        assert conv._packed.fits(conv._ready, x)
    conv.prepare(torch.float32)
    assert conv._packed is None  # a new weight needs a new packing


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, on first use
def test_gradients_of_the_input_and_function_transforms_take_the_general_path():
    conv, plain = layer(prepared=True), layer(prepared=False)
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    (ours,), (expected,) = (torch.autograd.grad(c(x).square().sum(), x) for c in (conv, plain))
    torch.testing.assert_close(ours, expected)
    with torch.no_grad():
        batched = torch.func.vmap(conv)(x[:, None])
        torch.testing.assert_close(batched[:, 0], plain(x))
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangent = torch.autograd.forward_ad.unpack_dual(conv(dual)).tangent
        torch.testing.assert_close(tangent, plain(torch.ones_like(x)))


@torch.no_grad()
def test_other_weights_are_packed_anew_and_copies_are_their_own():
    conv, other = layer(prepared=True), layer(prepared=True)
    other._ready = -other._ready
    x = torch.randn(2, 8, 4, 4)
    y = conv(x)
    swapped = torch.func.functional_call(conv, dict(other.named_buffers()), (x,))
    torch.testing.assert_close(swapped, -y)
    for copied in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert copied._packed is None
        torch.testing.assert_close(copied(x), y)
    torch.testing.assert_close(conv(x, gain=0.5), y / 2)


@torch.no_grad()
def test_one_compiled_graph_serves_all_networks_of_a_shape():
    x, graphs = torch.randn(2, 8, 4, 4), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    for i in range(10):  # torch gives up after eight graphs of one function
        conv = layer(prepared=True)
        conv._ready = conv._ready * (i + 1)
        y = conv(x)
        compiled = torch.compile(conv, fullgraph=True, backend=backend, dynamic=False)
        torch.testing.assert_close(compiled(x), y)
    assert len(graphs) == 1


@torch.no_grad()
def test_a_compiled_graph_uses_what_was_packed_before_and_needs_nothing():
    x = torch.randn(2, 8, 4, 4)
    for packed_before in (True, False):
        conv, plain = layer(prepared=True), layer(prepared=False)
        if packed_before:
            conv(x)
        graphs = []

        def backend(graph, inputs, graphs=graphs):
            graphs.append(graph.code)
            return graph.forward

        torch._dynamo.reset()
        compiled = torch.compile(conv, fullgraph=True, backend=backend, dynamic=False)
        torch.testing.assert_close(compiled(x), plain(x), rtol=1e-5, atol=1e-5)
        assert ("packed_conv" in graphs[0]) == packed_before


@pytest.mark.parametrize(
    ("kind", "packed", "tolerance"),
    [(MPConv, PackedWinograd, 1e-5), (MPUpConv, PackedUpConv, 1e-6), (None, PackedConv, 1e-6)],
)
@torch.no_grad()
def test_inductor_takes_the_operator_with_the_strides_it_has(kind, packed, tolerance):
    conv = layer(prepared=True)
    x = torch.randn(2, 8, 4, 4)
    if kind is not None:
        conv, x = kind(64, 64, *[(3, 3)] * (kind is MPConv)), torch.randn(2, 64, 8, 8)
        conv.requires_grad_(False).prepare(torch.float32, for_graph=True)
    expected = conv(x).relu() * 2
    assert type(conv._packed) is packed
    compiled = torch.compile(lambda x: conv(x).relu() * 2, fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(x), expected, rtol=tolerance, atol=tolerance)
