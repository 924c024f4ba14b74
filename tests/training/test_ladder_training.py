"""Every config of the ladder in the stock trainer, sweep and sampler."""

import json

import numpy as np
import pytest
import torch
from training_runs import digests, losses

from edm2lite.models.loading import load
from edm2lite.network.magnitudes import read_log
from edm2lite.sampling import Sampling
from edm2lite.sampling.generation import generate
from edm2lite.sweep import sweep_ema
from edm2lite.training import Trainer, load_config

TINY = ("batch_size=8", "total_nimg=32", "status_nimg=16", "snapshot_nimg=8", "checkpoint_nimg=16",
        "magnitudes_nimg=8", "optim.rampup_nimg=16")  # fmt: skip


def trained(rung, folder, *changes):
    config = load_config(f"ladder-small-{rung}", [*TINY, *changes])
    Trainer(config, folder, torch.device("cpu")).train()
    return folder


@pytest.mark.parametrize("rung", "abcdef")
def test_every_rung_trains_continues_is_swept_and_sampled(rung, tmp_path):
    whole, cut = trained(rung, tmp_path / "whole"), tmp_path / "cut"
    trained(rung, cut, "total_nimg=16")
    trained(rung, cut)
    assert digests(cut) == digests(whole) and losses(cut) == losses(whole)
    sweep = sweep_ema(whole, [0.1], metric="loss", data="digits", num=8, max_error=1)
    assert all(np.isfinite(point.value) for point in sweep.points)
    model = load(f"{whole}@sigma_rel=0.1")
    images = generate(model, range(2), classes="all", sampling=Sampling(num_steps=2))
    assert images.shape == (2, 1, 8, 8) and images.dtype == torch.uint8
    log = read_log(whole / "magnitudes.jsonl")
    assert [nimg for nimg, _ in log] == [8, 16, 24, 32]
    last = json.loads((whole / "stats.jsonl").read_text().splitlines()[-1])
    assert set(last["activation"]) == {"enc 8x8", "enc 4x4", "dec 4x4", "dec 8x8"}


def weights(folder):
    """RMS of the stored weights of every layer, after each logged step."""
    return [
        {m.name: m.weight for m in layers if m.weight is not None and "norm" not in m.name}
        for _, layers in read_log(folder / "magnitudes.jsonl")
    ]


def test_lengths_of_weights_grow_in_d_and_stay_in_e(tmp_path):
    """Weights that are normalized on use move at right angles to themselves (Eq. 62 to 65)."""
    fast = "optim.ref_lr=0.2"  # grows by 0.02 a step
    free = weights(trained("d", tmp_path / "d", fast))
    assert all(free[0][name] < free[-1][name] for name in free[0])
    fixed = weights(trained("e", tmp_path / "e", fast))
    for layers in fixed:
        assert all(weight == pytest.approx(1, abs=1e-6) for weight in layers.values())
