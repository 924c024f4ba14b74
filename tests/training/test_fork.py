"""A run that branches off another: it goes on as that one did, or in another way."""

import json
import os

import pytest
import torch
from tiny_run import tiny_config
from training_runs import digests, losses

from edm2lite.ema import list_snapshots, reconstruct
from edm2lite.training import Trainer
from edm2lite.training.forking import fork

WIDE = [f"{key}=128" for key in ("batch_size", "status_nimg", "snapshot_nimg", "checkpoint_nimg")]


def train(config, out):
    Trainer(config, out, torch.device("cpu")).train()


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """A run of 1280 images, with checkpoints of 960 and 1280."""
    out = tmp_path_factory.mktemp("runs") / "long"
    train(tiny_config(), out)
    return out


def test_a_fork_that_changes_nothing_ends_where_its_run_does(long_run, tmp_path):
    config = fork(f"{long_run}@960", tmp_path / "same")
    train(config, tmp_path / "same")
    assert losses(tmp_path / "same") == losses(long_run)[3:]  # status lines of every 320 images
    assert digests(tmp_path / "same") == digests(long_run)


def test_a_fork_with_another_rate_goes_another_way_from_the_same_past(long_run, tmp_path):
    out = tmp_path / "slow"
    config = fork(f"{long_run}@nimg=960", out, ["optim.ref_lr=0.001"])
    train(config, out)
    before = {i.path.name: i.header.digest for i in list_snapshots(long_run) if i.nimg <= 960}
    after = {i.path.name: i.header.digest for i in list_snapshots(out) if i.nimg <= 960}
    assert before == after and digests(out) != digests(long_run)
    runs = {json.loads((folder / "run.json").read_text())["run"] for folder in (long_run, out)}
    assert len(runs) == 2 and {i.run for i in list_snapshots(out)} <= runs
    assert len({i.run for i in list_snapshots(out)}) == 1
    # an average that reaches back over the fork is rebuilt as well as one of the run it left
    errors = [reconstruct(folder, sigma_rel=0.2).predicted_error for folder in (long_run, out)]
    assert errors[1] == pytest.approx(errors[0], rel=0.5)


def test_the_same_fork_again_continues_and_another_is_refused(long_run, tmp_path):
    said, out = [], tmp_path / "again"
    config = fork(f"{long_run}@960", out, ["total_nimg=1600"])
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert fork(f"{long_run}@960", out, ["total_nimg=1600"], say=said.append) == config
    assert files == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert "goes on" in said[0]
    with pytest.raises(ValueError, match="was forked from"):
        fork(f"{long_run}@1280", out, ["total_nimg=1600"])
    with pytest.raises(ValueError, match="a run that was not forked"):
        fork(f"{long_run}@960", long_run)


@pytest.mark.parametrize(
    "at, changes, message",
    [
        ("@640", [], "the nearest is of 960: --fork .*@960"),
        ("@soon", [], "takes RUN@nimg"),
        ("@960", ["net.backbone.num_blocks=2"], "differ in net.backbone.num_blocks"),
        ("@960", ["ema.sigma_rels=[0.1, 0.2]"], "differ in ema.sigma_rels"),
        ("@960", WIDE, "batch_size must divide"),
        ("", [], "total_nimg must be more than the 1280 images"),
    ],
)
def test_what_cannot_be_forked_is_refused_before_anything_is_written(
    long_run, tmp_path, at, changes, message
):
    with pytest.raises(ValueError, match=message):
        fork(f"{long_run}{at}", tmp_path / "none", changes)
    assert not (tmp_path / "none").exists()


def test_a_fork_is_on_disk_when_it_appears_and_has_the_images_of_the_prior(
    long_run, tmp_path, monkeypatch
):
    tuned, out, synced = tmp_path / "tuned", tmp_path / "out", set()
    changes = (f"init={long_run}", "prior={generate: 4, steps: 1}", "total_nimg=320")
    train(tiny_config(*changes), tuned)
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.add(os.fstat(fd).st_ino), real(fd)))
    fork(f"{tuned}@320", out, ["total_nimg=640"])
    assert {path.name for path in out.rglob("*") if path.stat().st_ino not in synced} == set()
    assert (out / "prior.zip").read_bytes() == (tuned / "prior.zip").read_bytes()
    fork(f"{tuned}@320", tmp_path / "b", ["total_nimg=640", "prior.seed=9"])
    assert not (tmp_path / "b" / "prior.zip").exists()  # made anew, of other seeds


def test_a_fork_needs_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no"):
        fork(f"{tmp_path}/none@960", tmp_path / "out")
