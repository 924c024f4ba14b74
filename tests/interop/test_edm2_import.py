"""Official EDM2 files, written here as that code writes them, against the weights put into them."""

import dataclasses

import numpy as np
import pytest
import reference_network as ref
import torch
from official_files import (
    LATENTS,
    TINY,
    EasyDict,
    official_network,
    persistent,
    random_net,
    vae_encoder,
    write,
)
from torch import nn

import edm2lite as package
from edm2lite.diffusion.precond import Precond
from edm2lite.interop.edm2 import Average, import_file
from edm2lite.models.encoders import EDM2_LATENTS, PixelEncoder
from edm2lite.sampling import Sampling
from edm2lite.tensorfile import load_tensors


def denoised(state, x, sigma, one_hot, sigma_data=0.5):
    """D_x in float64 NumPy (Eqs. 4 to 8)."""
    s = sigma[:, None, None, None]
    total = s**2 + sigma_data**2
    unet = {k.removeprefix("unet."): v for k, v in state.items() if k.startswith("unet.")}
    F_x = ref.unet(unet, x / np.sqrt(total), np.log(sigma) / 4, one_hot, TINY.head_channels)
    return sigma_data**2 / total * x + s * sigma_data / np.sqrt(total) * F_x


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_imported_network_denoises_as_the_numpy_reference_does(tmp_path, dtype, protocol):
    net = random_net().to(dtype)
    path = write(tmp_path / "edm2-img8-0001048-0.135.pkl", net, protocol=protocol)
    out = import_file(path, tmp_path / "net.safetensors")
    stored, metadata = load_tensors(out)
    assert {v.dtype for v in stored.values()} == {dtype}
    loaded = Precond.load(out)
    sigma = np.array([0.05, 0.7, 20.0])
    x = (
        np.random.default_rng(0).normal(size=(3, 2, 8, 8))
        * np.hypot(sigma, 0.5)[:, None, None, None]
    )
    labels = np.array([2, 0, 1])
    got = loaded(torch.from_numpy(x), torch.from_numpy(sigma), torch.from_numpy(labels))
    state = {k: v.double().numpy() for k, v in net.state_dict().items()}
    expected = denoised(state, x, sigma, np.eye(3)[labels])
    # float32 arithmetic over some ten layers
    np.testing.assert_allclose(got.double().numpy(), expected, atol=3e-6 * np.abs(expected).max())
    head = ref.conv(
        ref.fourier(
            np.log(sigma) / 4, state["logvar_fourier.freqs"], state["logvar_fourier.phases"]
        ),
        state["logvar_linear.weight"],
    )
    np.testing.assert_allclose(loaded.logvar(torch.from_numpy(sigma)), head[:, 0], atol=1e-5)
    assert metadata["nimg"] == str(2**20) and metadata["sigma_rel"] == "0.135"
    assert package.load(out).encoder == PixelEncoder()


def test_what_the_arguments_do_not_say_comes_from_the_modules_and_the_paper(tmp_path):
    official = official_network(
        random_net(dataclasses.replace(TINY, dropout=0.25, label_balance=0.4))
    )
    for module in official.modules():
        if type(module).__name__ == "Block":
            module.dropout = 0.25
    official.unet.label_balance, official.unet.concat_balance = 0.4, 0.5
    for name in ("img_channels", "label_dim", "use_fp16"):
        del official._init_kwargs[name]
    official.img_channels, official.sigma_data = 2, np.float32(0.25)
    loaded = Precond.load(import_file(write(tmp_path / "a.pkl", network=official)))
    assert loaded.config.backbone == dataclasses.replace(TINY, dropout=0.25, label_balance=0.4)
    assert loaded.config.sigma_data == 0.25 and loaded.config.dtype == "float32"
    half = official_network(random_net(), use_fp16=True)
    assert (
        Precond.load(import_file(write(tmp_path / "b.pkl", network=half))).config.dtype == "float16"
    )


def test_settings_by_position_are_understood(tmp_path):
    """In the order of the official classes; the same network by name is the oracle."""
    config = dataclasses.replace(LATENTS, label_balance=0.4, concat_balance=0.6)
    official, encoder = official_network(random_net(config)), vae_encoder()
    official._init_args = (8, 4, 3, True, 0.5, 128)
    official._init_kwargs = EasyDict({"model_channels": 8, "channels_per_head": 8})
    official.unet._init_args = (8, 4, 3, 8, [1, 2], None, None, 1, [4], 0.4, 0.6)
    official.unet._init_kwargs = EasyDict()
    official.use_fp16 = True
    for module in official.modules():
        if type(module).__name__ == "Block":
            module._init_args = (8, 8, 16, module.flavor, "keep", [1, 1], False, 8, 0.0, 0.3, 0.3)
    encoder._init_args = (
        "stabilityai/sd-vae-ft-mse", [5.81, 3.25, 0.12, -2.15], [4.17, 4.62, 3.71, 3.28], 0, 0.5, 8
    )  # fmt: skip
    path = write(tmp_path / "a.pkl", network=official, encoder=encoder)
    model = package.load(import_file(path))
    assert model.net.config.backbone == config and model.net.config.dtype == "float16"
    assert model.encoder == EDM2_LATENTS


def test_views_come_out_as_the_values_that_they_show(tmp_path):
    net = random_net()
    official = official_network(net)
    conv = official.unet.out_conv
    conv.weight = nn.Parameter(conv.weight.data.to(memory_format=torch.channels_last))
    long = torch.zeros(100)
    long[10:26:2] = official.unet.emb_fourier.freqs
    official.unet.emb_fourier.freqs = long[10:26:2]
    loaded = Precond.load(import_file(write(tmp_path / "a.pkl", network=official)))
    for name, value in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_encoder_of_latents_is_ours(tmp_path, protocol):
    path = write(tmp_path / "a.pkl", random_net(LATENTS), encoder=vae_encoder(), protocol=protocol)
    encoder = package.load(import_file(path)).encoder
    assert encoder == EDM2_LATENTS
    mean, std = np.float32([1.5, -0.75, 0.5, 0.75]), [5.0, 6, 4.0, 4.5]
    final_mean, final_std = [0.1, 0.0, -0.2, 0.0], np.float64([0.25, 0.5, 1.0, 0.25])
    scale = np.float32(final_std / std)
    other = persistent(
        "StabilityVAEEncoder",
        init_kwargs={
            "vae_name": "someone/vae-2", "raw_mean": mean, "raw_std": std, "batch_size": 4,
            "final_mean": final_mean, "final_std": final_std,
        },
        scale=scale[None, :, None, None], bias=np.float32(final_mean) - mean * scale, vae_name=None,
    )  # fmt: skip
    path = write(tmp_path / "b.pkl", random_net(LATENTS), encoder=other, protocol=protocol)
    encoder = package.load(import_file(path)).encoder
    latents = np.random.default_rng(0).normal(size=(2, 4, 3, 3)) * 5
    expected = (latents - shaped(mean)) / shaped(std) * shaped(final_std) + shaped(final_mean)
    raw = torch.from_numpy(np.concatenate([latents, np.zeros_like(latents)], axis=1))
    got = encoder.encode(raw, torch.zeros(latents.shape))
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)  # float32
    assert (encoder.vae, encoder.input_range) == ("someone/vae-2", "0..1")


def shaped(values):
    return np.float64(values)[:, None, None]


def test_file_names_give_time_and_length_exactly():
    def of(name):
        average = Average.of(type("P", (), {"name": name}))
        return average and dataclasses.astuple(average)

    # kimg is the number of images // 1000; every power of two from 2^20 on comes back
    for power in range(20, 33):
        assert of(f"x-{2**power // 1000:07d}-0.050.pkl") == ("x", 2**power, 0.05)
    assert of("edm2-img512-xxl-0939524-0.070.pkl") == ("edm2-img512-xxl", 896 * 2**20, 0.07)
    assert of("network-snapshot-0000000-0.100.pkl") == ("network-snapshot", 0, 0.1)
    for multiple in range(0, 10**6, 997):
        nimg = 1024 * multiple
        assert of(f"x-{nimg // 1000:07d}-0.100.pkl")[1] == nimg
    assert of("x-0000042-0.100.pkl") is None, "no multiple of 1024 lies in 42000 to 42999"
    for name in ("x.pkl", "x-1048-0.1.pkl", "x-0001048-0.400.pkl", "x-0001048-0.000.pkl"):
        assert of(name) is None


def test_an_imported_network_is_not_its_own_unconditional_guide(tmp_path):
    """EDM2 trains without label dropout; its guides are networks of their own."""
    path = write(tmp_path / "edm2-img8-0001048-0.135.pkl", random_net())
    model = package.load(import_file(path))
    assert model.metadata["label_dropout"] == "0.0"
    sampling = Sampling(num_steps=1, guidance=2.0)
    with pytest.raises(ValueError, match="has never seen an image without its conditions"):
        package.generate(model, [0], sampling=sampling, guide="unconditional")
