"""Multiply-accumulates of the presets against the paper's table."""

import pytest

from edm2lite.diffusion.precond import PrecondConfig
from edm2lite.network.flops import count_macs
from edm2lite.network.unet import UNetConfig

CONV_GMAC = {64: 11.15, 128: 44.57, 192: 100.24, 256: 178.16, 320: 278.35, 384: 400.80, 448: 545.50}


def config(channels):
    unet = UNetConfig(img_resolution=64, img_channels=4, label_dim=1000, model_channels=channels)
    return PrecondConfig(backbone=unet)


@pytest.mark.parametrize("channels", CONV_GMAC)
def test_convolutions_are_those_of_the_paper_to_its_last_digit(channels):
    resampling = 56064 * channels  # the paper counts 2x2 means and copies as convolutions
    gmac = (count_macs(config(channels).backbone).convolution + resampling) / 1e9
    assert gmac == pytest.approx(CONV_GMAC[channels], abs=0.0051)


def test_matrix_products_of_the_largest_preset():
    assert count_macs(config(448).backbone).matmul / 1e9 == pytest.approx(1.428, abs=5e-4)


def test_cost_follows_the_number_of_pixels():
    small = count_macs(config(64).backbone)
    wide = count_macs(config(64).backbone, height=64, width=128)
    assert wide.convolution == 2 * small.convolution
