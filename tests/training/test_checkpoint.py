"""Checkpoints: whole, verified, never fewer than two; snapshots that come after them."""

import logging
import os
import shutil

import pytest
import torch
from tiny_run import tiny_config
from training_runs import digests, losses

from edm2lite.ema import list_snapshots, stale
from edm2lite.training import manifest
from edm2lite.training.checkpoint import Checkpoints
from edm2lite.training.manifest import finished
from edm2lite.training.trainer import Trainer

CPU = torch.device("cpu")


def nothing():
    pass


def state(value):
    return {"weights": torch.full((1000,), float(value)), "nimg": value, "history": [[1, value]]}


def filled(folder, *values, keep=9):
    checkpoints = Checkpoints(folder, keep)
    for value in values:
        checkpoints.save(value, state(value), nothing)
    checkpoints.flush()
    return checkpoints


def names(folder):
    return sorted(int(p.name) for p in finished(folder))


def flip(path, offset=-1):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_newest_checkpoint_is_loaded_with_everything_in_it(tmp_path):
    filled(tmp_path, 100, 300, 200)
    found = Checkpoints(tmp_path, 2).load_latest(lambda: state(0))
    assert found["nimg"] == 300 and found["history"] == [[1, 300]]
    assert found["weights"].equal(torch.full((1000,), 300.0))
    assert Checkpoints(tmp_path / "none", 2).load_latest(lambda: state(0)) is None


def test_what_changes_after_save_does_not_reach_the_file(tmp_path):
    checkpoints, live = Checkpoints(tmp_path, 2), state(5)
    checkpoints.save(5, live, lambda: live["weights"].zero_())  # before anything is written
    live["history"].append([2, 2])
    checkpoints.flush()
    found = checkpoints.load_latest(lambda: state(0))
    assert found["weights"].equal(torch.full((1000,), 5.0)) and found["history"] == [[1, 5]]


DAMAGE = {
    "__0_0.distcp holds": lambda folder: flip(folder / "__0_0.distcp"),
    "0 bytes of digest": lambda folder: (folder / "__0_0.distcp").write_bytes(b""),
    "file .metadata holds": lambda folder: flip(folder / ".metadata", 20),
    "__0_0.distcp is missing": lambda folder: (folder / "__0_0.distcp").unlink(),
    "has no digests.json": lambda folder: (folder / manifest.NAME).unlink(),
    "its digests.json is damaged": lambda folder: flip(folder / manifest.NAME, 60),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damaged_newest_checkpoint_is_named_and_the_one_before_used(message, tmp_path, caplog):
    filled(tmp_path, 100, 200)
    DAMAGE[message](tmp_path / "000000000200")
    found = Checkpoints(tmp_path, 2).load_latest(lambda: state(0))
    assert found["nimg"] == 100
    assert "000000000200 is damaged" in caplog.text and message in caplog.text
    assert "it is now 000000000200.damaged, continuing from 000000000100" in caplog.text
    assert names(tmp_path) == [100] and (tmp_path / "000000000200.damaged").is_dir()


def test_no_intact_checkpoint_is_an_error_and_no_new_start(tmp_path):
    filled(tmp_path, 100, 200)
    for folder in finished(tmp_path):
        flip(folder / "__0_0.distcp")
    with pytest.raises(ValueError, match="of 000000000200, the newest of 2: its file .* remove"):
        Checkpoints(tmp_path, 2).load_latest(lambda: state(0))
    assert names(tmp_path) == [100, 200]


def test_the_newest_ones_are_kept_and_damaged_ones_do_not_count(tmp_path):
    filled(tmp_path, 100, 200, 300, keep=2)
    assert names(tmp_path) == [200, 300]
    filled(tmp_path, 400, keep=3)
    assert names(tmp_path) == [200, 300, 400]
    flip(tmp_path / "000000000300" / "__0_0.distcp")
    filled(tmp_path, 500, keep=3)
    assert names(tmp_path) == [200, 300, 400, 500]  # 300 is damaged: three intact ones remain


def test_a_checkpoint_waits_for_what_comes_before_it(tmp_path):
    checkpoints = filled(tmp_path, 100)

    def fails():
        raise OSError(28, "No space left on device", "snapshots/a")

    checkpoints.save(200, state(200), fails)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.flush()
    assert names(tmp_path) == [100]


def test_digest_of_a_file_is_xxh3_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    # the published value of XXH3_128bits of no bytes, seed 0
    assert manifest.entry(tmp_path / "a") == (0, "99aa06d3014798d86001c324468d497f")


def test_a_run_continues_from_the_checkpoint_before_a_damaged_one(run_dir, tmp_path, caplog):
    folder = tmp_path / "a"
    Trainer(tiny_config("total_nimg=640"), folder, CPU).train()
    flip(folder / "checkpoints" / "000000000640" / "__0_0.distcp")
    caplog.set_level(logging.INFO, "edm2lite")
    trainer = Trainer(tiny_config(), folder, CPU)
    assert trainer.nimg == 320
    assert "000000000640 is damaged" in caplog.text
    assert "archived 4 snapshots later than nimg = 320" in caplog.text
    assert max(info.nimg for info in list_snapshots(folder)) == 320
    assert len(list((folder / "snapshots" / "superseded").iterdir())) == 4
    written = (folder / "log.txt").read_text().splitlines()[-2:]
    assert "000000000640 is damaged" in written[0] and "archived 4 snapshots" in written[1]
    trainer.train()
    assert digests(folder) == digests(run_dir) and losses(folder) == losses(run_dir)
    assert not (folder / "snapshots" / "superseded").exists()


def test_snapshots_that_the_rerun_does_not_repeat_are_kept_apart(run_dir, tmp_path):
    folder = tmp_path / "snapshots"
    shutil.copytree(run_dir / "snapshots", folder)
    last = list_snapshots(folder)[-1].path
    stale.archive(folder, 1120)
    archive = folder / "superseded"
    assert {p.name for p in archive.iterdir()} == {p.name for p in folder.parent.rglob("*1280*")}
    earlier = list_snapshots(folder)[0]
    # as if the rerun had written other bytes in the place of the last one
    altered = earlier.path.read_bytes()
    last.write_bytes(altered)
    shutil.copy(run_dir / "snapshots" / last.name.replace("0.10000", "0.05000"), folder)
    assert stale.delete_reproduced(folder) == [archive / last.name]
    assert [p.name for p in archive.iterdir()] == [last.name]
    original = (run_dir / "snapshots" / last.name).read_bytes()
    os.replace(last, folder / "x")
    shutil.copy(run_dir / "snapshots" / last.name, folder)
    (archive / last.name).write_bytes(altered)
    stale.archive(folder, 1120)  # a second restart: both versions stay
    assert (archive / f"{last.stem}.2.safetensors").read_bytes() == original
    assert (archive / last.name).read_bytes() == altered
