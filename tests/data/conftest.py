"""Photographs that scikit-learn ships, and a small autoencoder trained on patches of them."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images


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
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 16, 16), sample_size=32, mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    rng = np.random.default_rng(0)
    for _ in range(150):
        patches = [
            photographs[rng.integers(2)][y : y + 64 : 2, x : x + 64 : 2]
            for y, x in zip(rng.integers(0, 360, 8), rng.integers(0, 570, 8), strict=True)
        ]
        x = torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2) / 127.5 - 1
        latent = model.encode(x).latent_dist
        error = (model.decode(latent.sample()).sample - x).square().mean()
        loss = error + 1e-4 * latent.kl().mean() / 64
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("vae") / "vae"
    model.save_pretrained(folder)
    assert error < 0.1  # the photographs have variance 0.3
    return folder
