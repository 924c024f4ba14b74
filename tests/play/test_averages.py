"""Averages for somebody who tries one length after the other: as `reconstruct` gives them."""

import shutil

import pytest
import torch

from edm2lite.ema import PowerFunctionEMA, reconstruct
from edm2lite.play.averages import LENGTHS, Averages


@pytest.fixture
def growing(run_dir, tmp_path):
    """A run whose later half of snapshots is not there yet, and a function that adds them."""
    run = tmp_path / "run"
    (run / "snapshots").mkdir(parents=True)
    files = sorted((run_dir / "snapshots").iterdir(), key=lambda p: p.stem.rpartition("-")[2])

    def add(some):
        for file in some:
            shutil.copy(file, run / "snapshots")

    add(files[:8])
    return run, lambda: add(files[8:])


def test_averages_are_those_of_reconstruct(run_dir):
    averages = Averages(run_dir)
    for sigma_rel, nimg in ((0.07, None), (0.123, 640), (0.1, None)):
        found = averages.build(sigma_rel, nimg)
        expected = reconstruct(run_dir, sigma_rel=sigma_rel, nimg=nimg)
        assert found.predicted_error == pytest.approx(expected.predicted_error, rel=1e-6)
        for name, value in expected.state_dict.items():
            assert (found.state_dict[name] - value).abs().max() < 1e-6, name


def test_what_was_built_is_kept_until_memory_is_short(run_dir, monkeypatch):
    averages = Averages(run_dir)
    first = averages.build(0.1).state_dict
    assert averages.build(0.1).state_dict is first and averages.build(0.10004).state_dict is first
    assert averages.build(0.101).state_dict is not first
    monkeypatch.setattr("edm2lite.play.averages._KEPT_BYTES", 0)
    averages.build(0.102)
    assert averages.build(0.1).state_dict is not first


def test_lengths_are_those_whose_error_is_small(tmp_path):
    generator = torch.Generator().manual_seed(0)
    walk = {"w": torch.zeros(500)}  # moves so far that two snapshots of one time give few lengths
    ema = PowerFunctionEMA(walk)
    for step in range(1, 201):
        walk["w"] += torch.randn(500, generator=generator)
        ema.update(64 * step)
    ema.save_snapshots(tmp_path)
    averages = Averages(tmp_path)
    errors = {s: plan.predicted_error for s, plan in averages.plans().items()}
    assert tuple(errors) == LENGTHS
    assert averages.lengths() == [s for s in LENGTHS if errors[s] <= 0.02]
    assert {0.05, 0.1} <= set(averages.lengths()) < set(LENGTHS)
    with pytest.raises(ValueError, match=r"28 % at 12,800 images .* above 0.02; lengths .* % to"):
        averages.build(0.28)


def test_new_snapshots_are_found_and_old_averages_stay(growing):
    run, add_the_rest = growing
    averages = Averages(run)
    assert averages.times[-1] == 640 and not averages.refresh()
    before = averages.build(0.08, 640).state_dict
    add_the_rest()
    assert averages.refresh() and averages.times[-1] == 1280
    assert averages.build(0.08).nimg == 1280
    assert averages.build(0.08, 640).state_dict is before


def test_averages_of_a_course_that_was_given_up_are_forgotten(growing):
    run, _ = growing
    averages = Averages(run)
    before = averages.build(0.08, 480).state_dict
    for file in (run / "snapshots").glob("*-0000000640.safetensors"):
        file.unlink()
    assert averages.refresh() and averages.times[-1] == 480
    assert averages.build(0.08).state_dict is not before
