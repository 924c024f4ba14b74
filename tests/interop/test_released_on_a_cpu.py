"""Networks of official pickles on a CPU: float32, as the original code computes them there."""

import dataclasses

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from official_files import TINY, random_net, write
from PIL import Image

import edm2lite as package
from edm2lite.interop.edm2 import import_file
from edm2lite.sampling import Sampling
from edm2lite.sampling.images import ImageGenerator
from edm2lite.tools.edm2lite import main as edm2lite

RGB = dataclasses.replace(TINY, img_channels=3)
CPU = torch.device("cpu")


@pytest.fixture
def pair(tmp_path):
    """One network, by a pickle that says use_fp16 and as it is: in float32."""
    net = random_net(RGB)
    half = random_net(RGB)
    half.config = dataclasses.replace(half.config, dtype="float16")
    path = write(tmp_path / "edm2-0001048-0.050.pkl", half)
    return package.load(import_file(path)), net


def images(model, **settings):
    batches = ImageGenerator(model, [0, 1, 2], sampling=Sampling(num_steps=4, **settings))
    return torch.cat([batch.images for batch in batches])


def test_released_networks_do_not_compute_in_float16_on_a_cpu(pair):
    released, net = pair
    assert released.net.config.dtype == "float16", "what the file says is kept, for GPUs"
    assert released.net.dtype_on(torch.device("cuda")) == "float16"
    x, sigma, labels = (
        torch.randn(3, 3, 8, 8),
        torch.tensor([0.1, 1.0, 9.0]),
        torch.tensor([0, 1, 2]),
    )
    expected = net(x, sigma, labels)
    assert torch.equal(released.net(x, sigma, labels), expected)
    assert released.net.prepared().config.dtype == "float32"
    assert torch.equal(released.net.prepared()(x, sigma, labels), net.prepared()(x, sigma, labels))
    other = dataclasses.replace(released, net=net)
    assert torch.equal(images(released), images(other))


def test_an_explicit_dtype_wins_on_a_cpu(pair, tmp_path):
    released, net = pair
    fast = released.net.prepared(dtype="float16")
    x = torch.randn(2, 3, 8, 8)
    assert fast.config.dtype == fast.dtype_on(CPU) == "float16"
    assert not torch.equal(fast(x, 1.0), net(x, 1.0))
    explicit = random_net(RGB)
    explicit.config = dataclasses.replace(explicit.config, dtype="float16")
    assert explicit.dtype_on(CPU) == "float16", "a person made it so"
    assert not torch.equal(explicit(x, 1.0), net(x, 1.0))
    shown = {}
    for name, options in (("default", []), ("half", ["--dtype", "float16"]),
                          ("single", ["--dtype", "float32"])):  # fmt: skip
        out = tmp_path / name
        words = ["generate", released.name, "--seeds", "0-1", "--steps", "4", *options]
        result = CliRunner().invoke(edm2lite, [*words, "--out", str(out)])
        assert result.exit_code == 0, result.output
        shown[name] = np.stack([np.asarray(Image.open(p)) for p in sorted(out.rglob("*.png"))])
    assert np.array_equal(shown["default"], shown["single"])
    assert not np.array_equal(shown["default"], shown["half"])
