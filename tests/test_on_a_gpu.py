"""What a GPU computes against float64 on the CPU; ``pytest -m cuda`` runs these where one is."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sampling.generating import files, save_net

from edm2lite.models.loading import load
from edm2lite.network.layers import MPConv, MPUpConv
from edm2lite.sampling import Sampling, generate
from edm2lite.sampling.images import ImageGenerator

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def check():
    folder = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.append(folder)
    yield importlib.import_module("gpu_correctness")
    sys.path.remove(folder)


@pytest.fixture(autouse=True)
def _no_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("way", ["eager", "compiled"])
def test_outputs_and_gradients_are_those_of_float64(check, way, dtype):
    gpu = torch.device("cuda")
    inputs = check.batch(check.NET, 8)
    reference = check.opened(check.NET).double()
    expected = check.with_gradients(reference, lambda *told: check.exact(reference, *told), inputs)
    net = check.opened(check.NET, dtype).to(gpu)
    denoise = check.compiled(net, gpu, tiny=False) if way == "compiled" else net
    got = check.with_gradients(net, denoise, tuple(t.to(gpu) for t in inputs))
    found = check.errors(got, expected)
    assert max(found["output"], found["gradient"]) < check.BOUNDS[dtype], found


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_transposed_convolution_is_that_of_copied_pixels(dtype, bound):
    """Of 8 channels and 3x3 weights: sums of 72 products, of which each is rounded once."""
    layer, plain = MPUpConv(8, 4), MPConv(8, 4, (3, 3))
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 8, 6, 5)
    expected = plain.double()(F.interpolate(x.double(), scale_factor=2, mode="nearest"))
    given = x.cuda().to(dtype).requires_grad_()
    got = layer.cuda()(given)
    assert (got.double().cpu() - expected).norm() < bound * expected.norm()
    got.sum().backward()
    x = x.double().requires_grad_()
    plain(F.interpolate(x, scale_factor=2, mode="nearest")).sum().backward()
    assert (given.grad.double().cpu() - x.grad).norm() < bound * x.grad.norm()


def test_images_are_those_of_a_cpu_and_do_not_depend_on_what_is_left(tmp_path):
    model = load(save_net(tmp_path / "net.safetensors"))
    settings = {"classes": "all", "sampling": Sampling(num_steps=4, dtype="float32")}
    common = {**settings, "device": "cuda", "batch_size": 16}
    expected = generate(model, range(40), device="cpu", **settings)
    got = generate(model, range(40), **common)
    assert (got.int() - expected.int()).abs().max() <= 1  # one rounds up where the other did not
    generate(model, range(40), out=tmp_path / "images", **common)
    whole = files(tmp_path / "images")
    (tmp_path / "images/000000/000003.png").unlink()
    generate(model, range(40), out=tmp_path / "images", **common)
    assert files(tmp_path / "images") == whole


def test_a_batch_is_launched_without_waiting(tmp_path):
    """After one batch for what is chosen and copied once."""
    model = load(save_net(tmp_path / "net.safetensors"))
    generator = ImageGenerator(
        model, range(32), sampling=Sampling(num_steps=2), batch_size=16, device=torch.device("cuda")
    )
    net = generator._prepared(model)
    generator._fetched(generator._launched(net, None, slice(0, 16)))
    torch.cuda.set_sync_debug_mode("error")
    try:
        launched = generator._launched(net, None, slice(16, 32))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert generator._fetched(launched).seeds == list(range(16, 32))


@pytest.mark.parametrize("dtype, most", [("float32", 1), ("float16", 2), ("bfloat16", 10)])
def test_an_autoencoder_decodes_as_on_a_cpu(latents, dtype, most):
    from edm2lite.dataset import open_dataset

    encoder = open_dataset(latents).encoder
    x = 0.5 * torch.randn(16, 4, 8, 8)
    images, is_finite = encoder.decode_in(x.cuda(), dtype)
    assert is_finite and (images.cpu().int() - encoder.decode(x).int()).abs().max() <= most
