"""Packed convolutions against torch's own, and which kernels a prepared layer calls."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from edm2lite.network.kernels.packed_conv import PackedConv, PackedUpConv, PackedWinograd
from edm2lite.network.kernels.prepared import PreparedConv
from edm2lite.network.layers import MPConv, MPUpConv

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch without oneDNN"
)


class Recorder(TorchDispatchMode):
    """Collects the operations that torch executes, with their arguments."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append((func.__name__.partition(".")[0], args))
        return func(*args, **(kwargs or {}))

    def count(self, *names):
        return sum(name in names for name, _ in self.calls)


def recorded(function, *args):
    """The result of a call, and what it called."""
    with Recorder() as recorder:
        result = function(*args)
    return result, recorder


def packings(recorder):
    return recorder.count("mkldnn_reorder_conv2d_weight", "_reorder_convolution_transpose_weight")


def packed_calls(recorder):
    return recorder.count("_convolution_pointwise", "_convolution_transpose_pointwise")


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


def prepared_and_plain():
    torch.manual_seed(0)
    plain = MPConv(8, 4, (3, 3)).requires_grad_(False)
    return PreparedConv(plain, torch.float32), plain


@torch.no_grad()
def test_a_prepared_layer_packs_once_for_each_change_of_shape():
    conv, plain = prepared_and_plain()
    for shape, packs in [
        ((2, 8, 4, 4), 1),
        ((2, 8, 4, 4), 0),
        ((5, 8, 6, 2), 1),
        ((5, 8, 6, 2), 0),
        ((2, 8, 4, 4), 1),  # only the shape seen last is kept
    ]:
        x = torch.randn(shape)
        y, recorder = recorded(conv, x)
        torch.testing.assert_close(y, plain(x), rtol=1e-5, atol=1e-5)
        assert (packings(recorder), packed_calls(recorder)) == (packs, 1)


@torch.no_grad()
def test_only_layers_of_float32_on_images_are_packed():
    x = torch.randn(2, 8, 4, 4)
    plain = MPConv(8, 4, (3, 3)).requires_grad_(False)
    y, recorder = recorded(PreparedConv(plain, torch.bfloat16), x.bfloat16())
    assert packed_calls(recorder) == 0
    torch.testing.assert_close(y, plain(x.bfloat16()))
    linear = MPConv(8, 4).requires_grad_(False)
    for dtype in (torch.float32, torch.bfloat16):  # embeddings are computed in float32 always
        y, recorder = recorded(PreparedConv(linear, torch.bfloat16), x[0, :, :, 0].T.to(dtype))
        assert packed_calls(recorder) == 0 and y.dtype == dtype
        torch.testing.assert_close(y, linear(x[0, :, :, 0].T.to(dtype)))


class Scaled(MPConv):
    """A user's layer that computes something that no kernel is known for."""

    convolve = staticmethod(lambda x, weight: 3 * F.conv2d(x, weight, padding=1))


@torch.no_grad()
def test_a_layer_of_a_user_is_prepared_but_not_packed():
    layer, x = Scaled(8, 4, (3, 3)).requires_grad_(False), torch.randn(2, 8, 4, 4)
    y, recorder = recorded(PreparedConv(layer, torch.float32), x)
    torch.testing.assert_close(y, layer(x))
    assert packed_calls(recorder) == 0


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, on first use
def test_gradients_of_the_input_and_function_transforms_take_the_general_path():
    conv, plain = prepared_and_plain()
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
    conv, plain = prepared_and_plain()
    x = torch.randn(2, 8, 4, 4)
    y = conv(x)
    torch.testing.assert_close(y, plain(x))
    swapped = torch.func.functional_call(conv, {"weight": -conv.weight}, (x,))
    torch.testing.assert_close(swapped, -y)
    for copied in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        z, recorder = recorded(copied, x)
        assert packings(recorder) == 1 and z.equal(y)
    torch.testing.assert_close(conv(x, gain=0.5), y / 2)
    torch.testing.assert_close(conv(x, gain=torch.tensor([0.5])), y / 2)


@torch.no_grad()
def test_one_compiled_graph_serves_all_networks_of_a_shape():
    x, graphs = torch.randn(2, 8, 4, 4), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    for _ in range(10):  # torch gives up after eight graphs of one function
        conv = PreparedConv(MPConv(8, 4, (3, 3)), torch.float32)
        y = conv(x)
        compiled = torch.compile(conv, fullgraph=True, backend=backend, dynamic=False)
        torch.testing.assert_close(compiled(x), y)
    assert len(graphs) == 1


@torch.no_grad()
def test_a_compiled_graph_uses_what_was_packed_before_and_needs_nothing():
    x = torch.randn(2, 8, 4, 4)
    for packed_before in (True, False):
        conv, plain = prepared_and_plain()
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


def small():
    return MPConv(8, 4, (3, 3)), torch.randn(2, 8, 4, 4)


def wide():
    return MPConv(64, 64, (3, 3)), torch.randn(2, 64, 8, 8)


def doubling():
    return MPUpConv(64, 64), torch.randn(2, 64, 8, 8)


@pytest.mark.parametrize(
    "build, operation, groups, tolerance",
    [
        (small, "_convolution_pointwise", 1, 1e-6),
        (wide, "_convolution_pointwise", 6, 1e-5),  # Winograd's six filters
        (doubling, "_convolution_transpose_pointwise", 1, 1e-6),
    ],
)
@torch.no_grad()
def test_inductor_takes_the_operator_with_the_strides_it_has(build, operation, groups, tolerance):
    layer, x = build()
    conv = PreparedConv(layer, torch.float32, compiled=True)
    y, recorder = recorded(conv, x)
    torch.testing.assert_close(y, layer(x), rtol=1e-5, atol=1e-5)
    used = [args for name, args in recorder.calls if name == operation]
    assert [[arg for arg in args if isinstance(arg, int)] for args in used] == [[groups]]
    compiled = torch.compile(lambda x: conv(x).relu() * 2, fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(x), y.relu() * 2, rtol=tolerance, atol=tolerance)
