"""Magnitudes: what the meter reads, and that the network keeps to the regime of the design."""

import copy
import json

import numpy as np
import pytest
import torch
from plain_backbone import MLPConfig
from tiny_run import tiny_config
from torch import nn

from edm2lite.diffusion.measure import measure_denoiser
from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.network.block import Block
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.layers import MPConv, mp_weights, normalize_weights_
from edm2lite.network.magnitudes import Meter, by_bucket, copies, read_log, relative_updates
from edm2lite.network.unet import UNetConfig
from edm2lite.training.config import load_config
from edm2lite.training.trainer import Trainer


class Pair(nn.Module):
    """A user's block of our layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = MPConv(4, 8, (1, 1)), MPConv(8, 8, (3, 3))

    def forward(self, x):
        return 3 * self.second(self.first(x), gain=torch.tensor(-0.5))


def test_meter_reads_what_numpy_computes_over_any_batches():
    net, x = Pair(), torch.randn(6, 4, 4, 8)
    kept = []
    net.second.register_forward_hook(lambda m, args, out: kept.append(out.detach().numpy()))
    with Meter(net) as meter:
        net(x[:4])
        net(x[4:])
    net(x * 100)  # after the block: not measured
    rms = np.sqrt(np.mean(np.concatenate(kept[:2]) ** 2, axis=(2, 3))).mean(0)
    block, first, second = meter.magnitudes()
    assert (block.name, block.is_block, block.resolution) == ("", True, "4x8")
    assert (first.name, second.name, second.expected) == ("first", "second", 0.5)
    assert second.activation == pytest.approx(rms.mean(), rel=1e-5)
    assert second.largest == pytest.approx(rms.max(), rel=1e-5)
    assert block.activation == pytest.approx(3 * rms.mean(), rel=1e-5)
    assert second.weight == pytest.approx(net.second.weight.square().mean().sqrt().item())


def test_vectors_are_measured_over_samples():
    net, x = nn.Sequential(MPConv(4, 8)), torch.randn(5000, 4)
    with Meter(net) as meter:
        y = net(x)
    layer = meter.magnitudes()[-1]
    assert layer.resolution == ""
    assert layer.activation == pytest.approx(y.square().mean(0).sqrt().mean().item(), rel=1e-4)


def test_any_backbone_can_be_measured():
    config = MLPConfig(img_resolution=4, img_channels=2, width=24, num_classes=3)
    net = Precond(PrecondConfig(backbone=config))
    images, labels = torch.randn(96, 2, 4, 4) * 0.5, torch.arange(96) % 3
    kept = {}
    for i, block in enumerate(net.backbone.hidden):
        block.register_forward_hook(lambda m, args, out, i=i: kept.setdefault(i, []).append(out))
    found = {
        m.name.removeprefix("backbone."): m
        for m in measure_denoiser(net, images, Conditioning.of(labels))
    }
    assert [name for name, m in found.items() if m.is_block] == ["hidden.0", "hidden.1"]
    assert set(found) - {"hidden.0", "hidden.1"} == {
        "first", "hidden.0.0", "hidden.0.2", "hidden.1.0", "hidden.1.2", "last",
    }  # fmt: skip
    for i, outputs in kept.items():
        features = torch.cat(outputs).detach().numpy()
        rms = np.sqrt(np.mean(features**2, axis=0))
        assert found[f"hidden.{i}"].activation == pytest.approx(rms.mean(), rel=1e-5)
        assert found[f"hidden.{i}"].largest == pytest.approx(rms.max(), rel=1e-5)
    # rows of nn.Linear are uniform within 1 / sqrt(fan_in): of norm 1 / sqrt(3)
    assert found["last"].weight == pytest.approx(3**-0.5, rel=0.05)
    assert found["hidden.0.0"].weight == 1  # the factors of a layer norm
    assert set(by_bucket(found.values())) == {"hidden"}
    before = copies(net)
    with torch.no_grad():
        net.backbone.last.weight.mul_(1.5)
    assert relative_updates(net, before)["backbone.last"] == pytest.approx(0.5)


def test_features_of_tokens_are_their_last_dimension():
    net, x = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), torch.randn(5, 7, 4)
    with Meter(net) as meter:
        y = net(x)
    *_, layer = meter.magnitudes()
    rms = np.sqrt(np.mean(y.detach().numpy() ** 2, axis=1)).mean(0)  # over tokens, then samples
    assert layer.resolution == "7"
    assert (layer.activation, layer.largest) == pytest.approx((rms.mean(), rms.max()), rel=1e-5)


def test_networks_with_a_condition_image_are_measured():
    config = UNetConfig(
        img_resolution=8, img_channels=1, cond_channels=2, model_channels=16, channel_mult=(1,),
        num_blocks=1, attn_resolutions=(), head_channels=16,
    )  # fmt: skip
    net, image = Precond(PrecondConfig(backbone=config)), torch.randn(6, 2, 8, 8)
    images = torch.randn(6, 1, 8, 8) * 0.5
    found = measure_denoiser(net, images, Conditioning({"image": image}), batch_size=4)
    louder = measure_denoiser(net, images, Conditioning({"image": image * 9}), batch_size=4)
    quiet, loud = (
        next(m.activation for m in layers if m.name == "unet.enc.8x8_conv")
        for layers in (found, louder)
    )
    assert loud > 3 * quiet


def test_layers_out_of_the_regime_are_flagged_and_closed_gains_are_not():
    net = nn.Sequential(MPConv(16, 16), MPConv(16, 16), MPConv(16, 16))
    with torch.no_grad():
        net[1].weight.mul_(5)  # a stored length that forced weight norm would not leave
    with Meter(net) as meter:
        x = net[1](net[0](torch.randn(500, 16)))
        net[2](x, gain=torch.zeros(1))
        net[0](x * float("nan"))
    flagged = {m.name: m.leaves_regime(2.0) for m in meter.magnitudes()}
    assert flagged == {"0": True, "1": True, "2": False}


def test_relative_updates_are_rms_change_over_rms():
    net = nn.Sequential(MPConv(16, 16))
    before = copies(net)
    with torch.no_grad():
        net[0].weight.add_(0.01 * torch.sign(net[0].weight))
    rms = before["0"].square().mean().sqrt().item()
    assert relative_updates(net, before) == {"0": pytest.approx(0.01 / rms, rel=1e-3)}


def test_buckets_are_sides_and_resolutions():
    net = Precond(load_config("digits").net)
    with Meter(net) as meter, torch.no_grad():
        net(torch.randn(2, 1, 8, 8), 1.0)
    buckets = by_bucket(meter.magnitudes())
    assert list(buckets) == ["enc 8x8", "enc 4x4", "dec 4x4", "dec 8x8"]
    assert all(0 < b["mean"] <= b["max"] for b in buckets.values())


def magnitude(block, embedding, pixels):
    """Of a block's output away from zero padding, its modulation (1 + gain * emb) at rest.

    Args:
        pixels: Side of the map of independent values; each is repeated to fill 16x16 pixels.
    """
    width = (block.conv_res1 if block.conv_skip is None else block.conv_skip).weight.shape[1]
    x = torch.randn(128, width, pixels, pixels).repeat_interleave(16 // pixels, 2)
    with torch.no_grad():
        y = block(x.repeat_interleave(16 // pixels, 3), torch.zeros(128, embedding))
    return y[..., 2:-2, 2:-2].square().mean().sqrt().item()


def without_attention(block):
    # It averages over pixels, which shrinks white noise: to 0.92 of the block's output at most, as
    # its branch carries 0.155 of the energy.
    plain = copy.deepcopy(block)
    plain.attn_qkv = plain.attn_proj = None
    return plain


@pytest.mark.slow
def test_blocks_keep_magnitude_one_at_initialisation_and_after_200_steps(tmp_path):
    config = load_config("digits", ["batch_size=16", "microbatch=16"])
    trainer = Trainer(config, tmp_path / "run", torch.device("cpu"))
    net = trainer.net
    blocks = {n: m for n, m in net.named_modules() if isinstance(m, Block)}
    for steps in (0, 200):
        while trainer.nimg < 16 * steps:
            trainer.train_step()
            trainer.nimg += 16
            normalize_weights_(net)
        for name, block in blocks.items():
            width = net.config.backbone.emb_channels
            assert magnitude(without_attention(block), width, 16) == pytest.approx(1, abs=0.05), (
                name
            )
            if steps == 0:  # attention included, where pixels agree and it has nothing to average
                assert magnitude(block, width, 1) == pytest.approx(1, abs=0.05), name
        for weight in mp_weights(net):
            rms = weight.flatten(1).square().mean(1).sqrt()
            torch.testing.assert_close(rms, torch.ones_like(rms), atol=1e-6, rtol=0)
    assert net.backbone.out_gain.item() != 0
    trainer.close()


def test_training_logs_magnitudes_and_goes_on_with_them_after_an_interruption(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = ("magnitudes_nimg=320", "microbatch=16")
    for folder, pieces in ((whole, [1280]), (cut, [640, 1280])):
        for total in pieces:
            config = tiny_config(*settings, f"total_nimg={total}")
            Trainer(config, folder, torch.device("cpu")).train()
    log = read_log(whole / "magnitudes.jsonl")
    assert [nimg for nimg, _ in log] == [320, 640, 960, 1280]
    assert read_log(cut / "magnitudes.jsonl") == log
    lrs = [json.loads(line)["lr"] for line in (whole / "stats.jsonl").read_text().splitlines()]
    for (_, layers), lr in zip(log, lrs, strict=True):
        measured = [m for m in layers if m.update is not None]
        assert len(measured) > 20
        for m in measured:
            assert m.weight == pytest.approx(1, abs=1e-6)
            # Adam moves an element by about its rate, and at most by rate / sqrt(1 - beta2)
            assert lr / 20 < m.update < 10 * lr, m.name
    figures = json.loads((whole / "stats.jsonl").read_text().splitlines()[-1])["activation"]
    assert figures["dec 4x4"] == pytest.approx(by_bucket(log[-1][1])["dec 4x4"]["mean"])


def test_log_that_is_not_one_is_refused(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"nimg": 3, "layers": [{"name": 1}]}\n')
    with pytest.raises(ValueError, match="must hold lines of magnitudes"):
        read_log(tmp_path / "m.jsonl")
    assert read_log(tmp_path / "none.jsonl") == []


def test_magnitudes_of_training_at_infinite_noise_are_not_nan(tmp_path):
    """A quarter of the samples are pure noise, on which the network has its usual magnitudes."""
    infinite = ("net.embedding=angle", "loss={kind: ddpm, num_levels: 4, zero_terminal_snr: true}")
    config = tiny_config(*infinite, "magnitudes_nimg=320", "total_nimg=640")
    trainer = Trainer(config, tmp_path, torch.device("cpu"))
    trainer.train()
    is_infinite = trainer.last_inputs.sigma.isinf()
    assert 0 < is_infinite.sum() < len(is_infinite)
    for _, layers in read_log(tmp_path / "magnitudes.jsonl"):
        assert len(layers) > 20
        for m in layers:
            assert np.isfinite([m.activation, m.largest]).all(), m.name
            assert not m.is_block or 0.1 < m.activation < 10, m.name
    figures = json.loads((tmp_path / "stats.jsonl").read_text().splitlines()[-1])["activation"]
    assert all(np.isfinite(value) for value in figures.values())
