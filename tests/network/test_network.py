"""Layers, U-Net and preconditioning against float64 NumPy, closed forms and published counts."""

import dataclasses
import math

import numpy as np
import pytest
import reference_network as ref
import torch
from open_gains import open_network

from edm2lite.diffusion.precond import Precond, PrecondConfig, Scalings
from edm2lite.network.attention import cosine_attention
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.kernels.prepared import PreparedConv
from edm2lite.network.kernels.unit_rms import EPS, unit_rms
from edm2lite.network.layers import (
    MPConv,
    MPFourier,
    MPUpConv,
    mp_weights,
    normalize_weights_,
)
from edm2lite.network.operations import (
    mp_cat,
    mp_silu,
    mp_sum,
    mp_sum_of_shares,
    pixel_norm,
    upsample,
)
from edm2lite.network.unet import UNetConfig

SMALL = UNetConfig(
    img_resolution=8, img_channels=2, label_dim=5, model_channels=16, channel_mult=(1, 2),
    num_blocks=2, attn_resolutions=(4,), head_channels=16,
)  # fmt: skip

COUNTS = {
    64: 31_309_029, 128: 124_713_253, 192: 280_212_837, 256: 497_807_781, 320: 777_498_085,
    384: 1_119_283_749, 448: 1_523_164_773,
}  # fmt: skip


def as_numpy(module):
    return {name: t.detach().double().numpy() for name, t in module.state_dict().items()}


@pytest.mark.parametrize("channels", COUNTS)
def test_parameter_counts_are_the_published_ones(channels):
    config = UNetConfig(img_resolution=64, img_channels=4, label_dim=1000, model_channels=channels)
    with torch.device("meta"):
        net = Precond(PrecondConfig(backbone=config))
    assert sum(p.numel() for p in net.parameters()) == COUNTS[channels]


def test_edm2_wiring_has_36_blocks_and_15_attend():
    with torch.device("meta"):
        net = Precond(PrecondConfig(backbone=UNetConfig(img_resolution=64, img_channels=4)))
    names = [n for n in net.state_dict() if n.endswith("conv_res0.weight")]
    attending = [n for n in net.state_dict() if n.endswith("attn_qkv.weight")]
    assert (len(names), len(attending)) == (36, 15)
    for name in (
        "unet.enc.64x64_conv.weight", "unet.enc.64x64_block0.conv_res0.weight", "unet.out_gain",
        "unet.dec.8x8_in0.attn_qkv.weight", "unet.emb_fourier.freqs", "logvar_fourier.phases",
        "logvar_linear.weight", "unet.out_conv.weight",
    ):  # fmt: skip
        assert name in net.state_dict()


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("size", [(8, 8), (4, 12)])
def test_network_equals_the_numpy_reference(labels, size):
    net = open_network(SMALL).double()
    x, c_noise = torch.randn(3, 2, *size).double(), torch.randn(3).double()
    one_hot = torch.eye(5, dtype=torch.float64)[[0, 3, 4]] if labels else torch.zeros(3, 5).double()
    got = net.unet(x, c_noise, Conditioning.of(one_hot if labels else None))
    state = as_numpy(net.unet)
    expected = ref.unet(state, x.numpy(), c_noise.numpy(), one_hot.numpy(), 16)
    # our norms, the embedding's Fourier features included, are float32 by design
    np.testing.assert_allclose(got.detach().numpy(), expected, atol=2e-6)


def test_denoiser_sees_the_condition_image_as_it_is_beside_the_scaled_input():
    net = open_network(dataclasses.replace(SMALL, cond_channels=3))
    x, image = torch.randn(2, 2, 8, 8), torch.randn(2, 3, 8, 8)
    sigma, labels = torch.tensor([0.3, 4.0]), torch.tensor([1, 4])
    got = net(x, sigma, Conditioning({"label": labels, "image": image}))
    x, level = x.double().numpy(), sigma.double().numpy()
    total = (level**2 + 0.25)[:, None, None, None]  # Eqs. 5 to 8 with sigma_data = 0.5
    F_x = ref.unet(
        as_numpy(net.unet), x / np.sqrt(total), np.log(level) / 4, np.eye(5)[labels], 16,
        image.double().numpy(),
    )  # fmt: skip
    expected = 0.25 / total * x + level[:, None, None, None] * 0.5 / np.sqrt(total) * F_x
    np.testing.assert_allclose(got.detach().numpy(), expected, atol=2e-5)  # float32 throughout


@pytest.mark.parametrize("kernel", [(), (1, 1), (3, 3)])
def test_unit_variance_in_unit_variance_out(kernel):
    layer = MPConv(64, 128, kernel)
    x = torch.randn(64, 64, *([16, 16] if kernel else []))
    y = layer(x)
    if kernel == (3, 3):
        y = y[..., 1:-1, 1:-1]  # zero padding takes energy away at the border
    assert y.std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("size", [(1, 1), (4, 6)])
def test_doubling_convolution_is_the_convolution_of_doubled_pixels(size):
    up, plain = MPUpConv(6, 5, in_rms=0.596).double(), MPConv(6, 5, (3, 3), in_rms=0.596).double()
    plain.load_state_dict(up.state_dict())
    x = torch.randn(2, 6, *size).double().requires_grad_()
    results = []
    for layer, y in ((up, up(x, gain=0.7)), (plain, plain(upsample(x), gain=0.7))):
        results.append((y, *torch.autograd.grad(y.pow(3).sum(), (x, layer.weight))))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)  # weight norm is float32
    with torch.no_grad():
        prepared = PreparedConv(up, torch.float32)
        torch.testing.assert_close(prepared(x.float()), plain.float()(upsample(x.float())))


def test_output_and_gradient_ignore_the_length_of_the_weight():
    layer, x = MPConv(16, 8, (3, 3)).double(), torch.randn(2, 16, 8, 8).double()
    y = layer(x)
    with torch.no_grad():
        layer.weight.mul_(torch.rand(8, 1, 1, 1) * 100 + 10)
    torch.testing.assert_close(layer(x), y, rtol=2e-4, atol=0)  # eps = 1e-4 of a unit weight
    layer(x).square().sum().backward()
    radial = (layer.weight.grad * layer.weight).sum((1, 2, 3)).abs()
    length = layer.weight.grad.norm() * layer.weight.norm()
    assert (radial / length).max() < 1e-4  # tangential, up to eps


def test_forced_normalization_sets_rows_to_rms_one_and_spares_gains():
    net = Precond(PrecondConfig(backbone=SMALL))
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3).add_(0.25)
    gains = [p.clone() for n, p in net.named_parameters() if n.endswith("gain")]
    normalize_weights_(net)
    for w in mp_weights(net):
        rms = w.flatten(1).square().mean(1).sqrt()
        torch.testing.assert_close(rms, torch.ones_like(rms), atol=1e-6, rtol=0)
    assert gains == [p for n, p in net.named_parameters() if n.endswith("gain")]
    assert sum(1 for _ in mp_weights(net)) + len(gains) == len(list(net.parameters()))


def test_forced_normalization_leaves_rows_of_zeros():
    layer = MPConv(4, 2)
    with torch.no_grad():
        layer.weight[0] = 0
    normalize_weights_(layer)
    assert layer.weight[0].eq(0).all() and layer.weight[1].norm().item() == pytest.approx(2)


def test_unit_rms_adds_eps_outside_the_root():
    x = torch.randn(4, 7).double()
    rms = x.square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(unit_rms(x, 1), x / (rms + EPS), rtol=1e-6, atol=0)
    zero = torch.zeros(2, 3, requires_grad=True)
    unit_rms(zero, 1).sum().backward()
    assert zero.grad.isfinite().all()


def test_pixel_norm_gives_every_pixel_rms_one():
    x = pixel_norm(torch.randn(2, 32, 4, 4) * 40)
    torch.testing.assert_close(x.square().mean(1), torch.ones(2, 4, 4), atol=1e-4, rtol=0)


def test_mp_silu_has_rms_one_for_normal_input():
    z = np.polynomial.hermite_e.hermegauss(80)
    silu = mp_silu(torch.from_numpy(z[0])).numpy()
    second = np.sum(silu**2 * z[1]) / math.sqrt(2 * math.pi)
    assert second == pytest.approx(0.3557755198 / 0.596**2, rel=1e-6)


def test_mp_sum_and_mp_cat_weights():
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    assert mp_sum(one, zero, 0.3).item() == pytest.approx(0.919145, abs=1e-6)
    assert mp_sum(zero, one, 0.3).item() == pytest.approx(0.393919, abs=1e-6)
    y = mp_cat(torch.ones(1, 768), torch.ones(1, 576), 0.5)
    assert y[0, 0].item() == pytest.approx(0.935414, abs=1e-6)
    assert y[0, -1].item() == pytest.approx(1.080123, abs=1e-6)


def test_a_branch_that_carries_its_share_is_added_as_in_mp_sum():
    a, b = torch.randn(2, 1000)
    share = 0.3 / math.sqrt(0.7**2 + 0.3**2)  # Eq. 88
    torch.testing.assert_close(mp_sum_of_shares(a, b * share, 0.3), mp_sum(a, b, 0.3))


def test_fourier_features_have_rms_one():
    y = MPFourier(4096)(torch.tensor([0.3, -1.7]))
    torch.testing.assert_close(y.square().mean(1), torch.ones(2), atol=0.05, rtol=0)


def test_attention_of_one_pixel_returns_its_normalized_value():
    qkv = torch.randn(2, 3 * 32, 1, 1)
    v = qkv.reshape(2, 3, 2, 16)[:, 2]
    expected = unit_rms(v, 2).reshape(2, 32, 1, 1)
    torch.testing.assert_close(cosine_attention(qkv, 2), expected)


def test_preconditioning_vectors():
    s = Scalings.at(torch.tensor([1.0, 0.5], dtype=torch.float64), 0.5)
    expected = [(0.2, 0.5), (0.447214, 0.353553), (0.894427, 1.414214), (0.0, -0.173287)]
    for got, values in zip((s.c_skip, s.c_out, s.c_in, s.c_noise), expected, strict=True):
        np.testing.assert_allclose(got, values, atol=1e-6)


def test_network_is_c_skip_x_at_initialization():
    net = Precond(PrecondConfig(backbone=SMALL))
    x = torch.randn(2, 2, 8, 8)
    torch.testing.assert_close(net(x, 1.0, torch.tensor([0, 1])), 0.2 * x)


def test_class_indices_and_one_hot_vectors_agree():
    net = open_network(SMALL)
    x, sigma = torch.randn(3, 2, 8, 8), torch.tensor([0.1, 1.0, 10.0])
    labels = torch.tensor([4, 0, 2])
    torch.testing.assert_close(net(x, sigma, labels), net(x, sigma, torch.eye(5)[labels]))


def test_class_minus_one_is_no_class():
    net = open_network(SMALL)
    x, sigma = torch.randn(2, 2, 8, 8), torch.tensor([0.3, 2.0])
    mixed = net(x, sigma, torch.tensor([3, -1]))
    torch.testing.assert_close(mixed[:1], net(x, sigma, torch.tensor([3, 3]))[:1])
    torch.testing.assert_close(mixed[1:], net(x, sigma)[1:])


@pytest.mark.parametrize(
    "labels, message",
    [
        (torch.zeros(2, 4), r"\[N, 5\] vectors"),
        (torch.tensor([0, 5]), "0 to 4, or -1 for none, got 0 to 5"),
        (torch.tensor([-2, 0]), "got -2 to 0"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    net = Precond(PrecondConfig(backbone=SMALL))
    with pytest.raises(ValueError, match=message):
        net(torch.randn(2, 2, 8, 8), 1.0, labels)


def test_forward_has_no_side_effects():
    net = open_network(SMALL).train()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    x = torch.randn(2, 2, 8, 8)
    a = net(x, 1.0, torch.tensor([0, 1]))
    b = net(x, 2.0, torch.tensor([2, 3]))
    (a.square().sum() + b.square().sum()).backward()  # two forwards, then one backward
    assert all(t.equal(before[n]) for n, t in net.state_dict().items())


@pytest.mark.parametrize("dtype, tolerance", [("float16", 2e-2), ("bfloat16", 1.5e-1)])
def test_half_precision_stays_within_its_rounding(dtype, tolerance):
    net = open_network(SMALL)
    half = Precond(PrecondConfig(backbone=SMALL, dtype=dtype))
    half.load_state_dict(net.state_dict())
    x, labels = torch.randn(4, 2, 8, 8), torch.arange(4)
    full, low = net(x, 0.7, labels), half(x, 0.7, labels)
    # about 40 roundings of relative size 2**-11 or 2**-8 in a row, and D is of order 1
    assert low.dtype == torch.float32 and (full - low).abs().max() < tolerance


def test_save_and_load_give_the_same_network(tmp_path):
    net = open_network(SMALL)
    path = net.save(tmp_path / "net.safetensors", {"nimg": "7"})
    loaded = Precond.load(path)
    assert loaded.config == net.config and not loaded.training
    x, labels = torch.randn(1, 2, 8, 8), torch.tensor([1])
    assert loaded(x, 0.3, labels).equal(net(x, 0.3, labels))


def test_weights_that_are_not_finite_are_refused(tmp_path):
    net = Precond(PrecondConfig(backbone=SMALL))
    with torch.no_grad():
        net.backbone.out_conv.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="unet.out_conv.weight"):
        Precond.load(net.save(tmp_path / "net.safetensors"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"img_resolution": 9}, "multiple of 2"),
        ({"model_channels": 20}, "multiple of head_channels"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig(**{**SMALL.__dict__, **changes})
