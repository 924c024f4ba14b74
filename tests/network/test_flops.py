"""Multiply-accumulates of the presets against the paper's table, and of any other network."""

import dataclasses

import pytest
from click.testing import CliRunner
from plain_backbone import MLPConfig

from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.network.flops import count_macs
from edm2lite.network.unet import UNetConfig
from edm2lite.tools.edm2lite import main as edm2lite

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


def test_a_condition_image_costs_its_channels_in_the_first_convolution():
    plain = UNetConfig(img_resolution=16, img_channels=4, label_dim=3, model_channels=64)
    told = dataclasses.replace(plain, cond_channels=2)
    extra = count_macs(told).convolution - count_macs(plain).convolution
    assert extra == 9 * 2 * 64 * 16 * 16  # 3x3 weights from 2 to 64 channels, for every pixel
    assert count_macs(told).matmul == count_macs(plain).matmul


def test_any_backbone_can_be_counted():
    config = MLPConfig(img_resolution=4, img_channels=2, width=10, num_classes=3)
    macs = count_macs(config)
    assert macs.convolution == 0
    assert macs.matmul == (32 + 1 + 3) * 10 + 2 * 10 * 10 + 10 * 32


def test_cost_follows_the_number_of_pixels():
    small = count_macs(config(64).backbone)
    wide = count_macs(config(64).backbone, height=64, width=128)
    assert wide.convolution == 2 * small.convolution


def test_the_command_counts_a_network_with_condition_channels(tmp_path):
    unet = UNetConfig(img_resolution=8, img_channels=1, label_dim=3, model_channels=64,
                      channel_mult=(1,), cond_channels=2)  # fmt: skip
    path = Precond(PrecondConfig(backbone=unet)).save(tmp_path / "net.safetensors")
    result = CliRunner().invoke(edm2lite, ["magnitudes", str(path), "--flops"])
    assert result.exit_code == 0, result.output
    macs = count_macs(unet)
    assert f"{macs.convolution / 1e9:.2f}" in result.output.splitlines()[1].split()
