"""The type in which an autoencoder decodes: how close it is, what is recorded, what is refused."""

import dataclasses
import shutil

import pytest
import torch
from sampling.generating import fail, save_net

from edm2lite.dataset import open_dataset
from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.metrics.image_source import Generation
from edm2lite.models.autoencoder import _decoder, load_autoencoder
from edm2lite.models.loading import Model
from edm2lite.network.unet import UNetConfig
from edm2lite.sampling.images import ImageGenerator
from edm2lite.sampling.settings import Sampling


@pytest.fixture(scope="module")
def model(latents):
    """An untrained model of latents of 4 x 8 x 8."""
    unet = UNetConfig(
        img_resolution=8, img_channels=4, model_channels=16, channel_mult=(1,), num_blocks=1,
        attn_resolutions=(), head_channels=16,
    )  # fmt: skip
    return Model("tiny", Precond(PrecondConfig(backbone=unet)), open_dataset(latents).encoder, {})


def made(model, dtype, device="cpu"):
    sampling = Sampling(num_steps=2, decoder_dtype=dtype)
    return ImageGenerator(model, range(8), sampling=sampling, device=torch.device(device))


@pytest.mark.parametrize("dtype, mean, most", [("float16", 0.05, 2), ("bfloat16", 0.5, 10)])
def test_half_precision_decodes_close_to_float32(model, vae, dtype, mean, most):
    """Relative errors of 2**-11 and 2**-8 in each of 20 layers, of values of 100 pixel levels."""
    (expected,), (got,) = ([batch.images for batch in made(model, kind)] for kind in (None, dtype))
    difference = (got.int() - expected.int()).abs()
    assert 0 < difference.double().mean() < mean and difference.max() <= most
    autoencoder = load_autoencoder(str(vae), "cpu")
    weights = [p for p in _decoder(autoencoder, dtype).parameters() if p.ndim == 4]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    assert {p.dtype for p in autoencoder.model.parameters()} == {torch.float32}
    (again,) = [batch.images for batch in made(model, None)]
    assert torch.equal(again, expected)


def test_the_type_is_recorded_where_it_changes_images(model):
    assert made(model, None).settings == made(model, "float32").settings
    assert made(model, "bfloat16").settings["decoder_dtype"] == "bfloat16"
    assert made(model, None, "cuda").settings["decoder_dtype"] == "float16"
    assert "decoder_dtype" not in made(model, "float32", "cuda").settings


def test_a_sweep_records_the_type_where_it_is_not_float32():
    def record(device, dtype=None, decodes=True):
        sampling = Sampling(num_steps=2, decoder_dtype=dtype)
        return Generation(sampling, device=torch.device(device), decodes=decodes).record

    plain = {"guide": "", "first_seed": 0, "num_steps": 2}
    assert record("cpu") == record("cuda", "float32") == record("cuda", decodes=False) == plain
    assert record("cuda") == record("cpu", "float16") == {**plain, "decoder_dtype": "float16"}


def test_values_out_of_range_end_in_a_line_that_says_what_to_do(model, vae, tmp_path):
    """The last layer gives numbers beyond 65504, the largest of float16."""
    from diffusers import AutoencoderKL

    wide = shutil.copytree(vae, tmp_path / "wide")
    autoencoder = AutoencoderKL.from_pretrained(wide, low_cpu_mem_usage=False)
    autoencoder.decoder.conv_out.bias.data += 1e5
    autoencoder.save_pretrained(wide)
    encoder = dataclasses.replace(model.encoder, vae=str(wide), vae_digest=None)
    model = dataclasses.replace(model, encoder=encoder)
    line = "seeds 0 to 7 were decoded as NaN or infinite; use a decoder_dtype of wider range"
    with pytest.raises(ValueError, match=line):
        list(made(model, "float16"))
    (batch,) = made(model, "bfloat16")
    assert batch.images.min() == 255


def test_models_of_pixels_have_no_decoder(tmp_path):
    path = save_net(tmp_path / "net.safetensors")
    line = fail(path, "--seeds", 0, "--decoder-dtype", "float16", "--out", tmp_path / "a")
    assert "decoder_dtype is for models of latents" in line and "leave it out" in line
    assert not (tmp_path / "a").exists()
