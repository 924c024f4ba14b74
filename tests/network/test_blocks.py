"""Every kind of block against float64 NumPy: its output, and its gradient by finite differences."""

import itertools
import math

import numpy as np
import pytest
import reference_network as ref
import torch
from torch.autograd import grad

from edm2lite.network.block import Block

HEAD_CHANNELS, EMB_CHANNELS = 8, 16
KINDS = [
    (flavor, resample, attention, in_channels)
    for flavor, resample, attention, in_channels in itertools.product(
        ("enc", "dec"), ("keep", "up", "down"), (False, True), (8, 16)
    )
    if not ((flavor == "enc" and resample == "up") or (flavor == "dec" and resample == "down"))
]


def build(flavor, resample, attention, in_channels):
    """A float64 block of 16 channels with 2 heads, gain open, and inputs for it."""
    block = Block(
        in_channels,
        16,
        emb_channels=EMB_CHANNELS,
        flavor=flavor,
        resample=resample,
        num_heads=2 if attention else 0,
    ).double()
    with torch.no_grad():
        block.emb_gain.fill_(0.8)
    x = torch.randn(2, in_channels, 4, 6, dtype=torch.float64)
    emb = torch.randn(2, EMB_CHANNELS, dtype=torch.float64)
    return block, x, emb


def in_numpy(values, flavor, resample):
    """values: x, emb and weights by name -> the block's output."""
    p = {k.removesuffix(".weight"): v for k, v in values.items() if k not in ("x", "emb")}
    return ref.block(p, values["x"], values["emb"], flavor, resample, HEAD_CHANNELS)


@pytest.mark.parametrize("flavor, resample, attention, in_channels", KINDS)
def test_block_equals_numpy_in_output_and_gradient(flavor, resample, attention, in_channels):
    block, x, emb = build(flavor, resample, attention, in_channels)
    y = block(x.requires_grad_(), emb.requires_grad_())
    tensors = {"x": x, "emb": emb, **dict(block.named_parameters())}
    values = {name: t.detach().numpy() for name, t in tensors.items()}
    # our norms are computed in float32, whose rounding is 6e-8
    np.testing.assert_allclose(y.detach(), in_numpy(values, flavor, resample), atol=1e-6)

    seen = torch.randn_like(y)
    slopes = grad((y * seen).sum(), list(tensors.values()))
    random = np.random.default_rng(0)
    for (name, value), slope in zip(values.items(), slopes, strict=True):
        direction = random.standard_normal(value.shape)
        step = 1e-5
        ends = [
            in_numpy({**values, name: value + s * step * direction}, flavor, resample)
            for s in (1, -1)
        ]
        expected = ((ends[0] - ends[1]) * seen.numpy()).sum() / (2 * step)
        # differences of float64 are good to about 1e-9; slopes go through float32 norms
        size = slope.norm().item() * np.linalg.norm(direction) / math.sqrt(max(value.size, 1))
        assert (slope.numpy() * direction).sum() == pytest.approx(expected, abs=1e-5 * size), name
