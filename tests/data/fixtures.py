"""Photographs that scikit-learn ships, and a small autoencoder trained on patches of them."""

import numpy as np
import pytest
import torch
from data.encoding import encode
from PIL import Image
from sklearn.datasets import load_sample_images

from edm2lite.dataset.collection import open_collection
from edm2lite.dataset.conversion import Conversion
from edm2lite.dataset.convert import convert_images


@pytest.fixture(scope="session")
def photographs():
    """Two photographs, uint8 [427, 640, 3]: a temple and a flower."""
    return [np.asarray(image) for image in load_sample_images().images]


@pytest.fixture(scope="session")
def photos(photographs, tmp_path_factory):
    """A folder of 24 photos of several sizes in two class folders."""
    folder = tmp_path_factory.mktemp("photos") / "photos"
    for k, name in enumerate(("flower", "temple")):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            height, width = 160 + 20 * (i % 3), 320 - 25 * (i % 5)
            cut = photographs[1 - k][10 * i :, 20 * i :][:height, :width]
            Image.fromarray(cut).save(folder / name / f"{i:02d}.jpg", quality=95)
    return folder


@pytest.fixture(scope="session")
def vae(photographs, tmp_path_factory):
    """Folder of an AutoencoderKL of a quarter of the side, after a few steps of training."""
    import safetensors.torch  # noqa: F401  (diffusers 0.30 saves by it without importing it)
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 8, 16), sample_size=32, mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    small = [np.asarray(Image.fromarray(photo).resize((160, 107))) for photo in photographs]
    rng = np.random.default_rng(0)
    for _ in range(150):
        corners = zip(rng.integers(0, 75, 4), rng.integers(0, 128, 4), strict=True)
        patches = [small[rng.integers(2)][y : y + 32, x : x + 32] for y, x in corners]
        x = torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2) / 127.5 - 1
        latent = model.encode(x).latent_dist
        error = (model.decode(latent.sample()).sample - x).square().mean()
        optimizer.zero_grad()
        (error + 1e-6 * latent.kl().mean()).backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("vae") / "vae"
    model.save_pretrained(folder)
    assert error < 0.15  # the photographs have variance 0.36
    return folder


@pytest.fixture(scope="session")
def squares(photos, tmp_path_factory):
    """The photos as a ZIP of 24 images of 32 x 32."""
    path = tmp_path_factory.mktemp("squares") / "squares.zip"
    convert_images(open_collection(photos), path, Conversion(resolution=32))
    return path


@pytest.fixture(scope="session")
def latents(squares, vae, tmp_path_factory):
    """Their latents of 4 x 8 x 8, in shards of 10."""
    folder = tmp_path_factory.mktemp("latents") / "latents"
    encode(squares, folder, vae)
    return folder
