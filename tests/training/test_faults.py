"""Signals, full disks, values that are not finite, ranks that die."""

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from tiny_run import tiny_config
from training_runs import HERE, arguments, digests, environment, losses, names, run_jobs, stats

from edm2lite.ema import list_snapshots
from edm2lite.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_run_with_a_checkpoint_and_it_continues(
    number, run_dir, tmp_path, caplog
):
    caplog.set_level(logging.INFO, "edm2lite")
    trainer = Trainer(tiny_config(), tmp_path / "a", CPU)
    step = trainer.train_step
    before = signal.getsignal(number)

    def signaled():
        if trainer.nimg == 352:
            os.kill(os.getpid(), number)
        return step()

    trainer.train_step = signaled
    trainer.train()
    assert signal.getsignal(number) is before
    assert f"stopped for {number.name} at nimg = 384 of 1280" in caplog.text
    assert "the same command continues" in caplog.text
    assert (tmp_path / "a" / "checkpoints" / "000000000384").is_dir()
    assert not (tmp_path / "a" / "last.safetensors").exists()
    Trainer(tiny_config(), tmp_path / "a", CPU).train()
    assert digests(tmp_path / "a") == digests(run_dir)
    assert losses(tmp_path / "a") == losses(run_dir)
    assert names(tmp_path / "a") == names(run_dir)


def test_a_full_disk_stops_the_run_with_one_line_and_earlier_files_intact(run_dir, tmp_path):
    snapshot, whole = (tmp_path / name for name in ("snapshot", "checkpoint"))
    size = list_snapshots(run_dir)[0].path.stat().st_size
    for folder in (snapshot, whole):
        Trainer(tiny_config("total_nimg=320"), folder, CPU).train()
    before = {f: {p: p.read_bytes() for p in f.rglob("*.safetensors")} for f in (snapshot, whole)}
    codes, text = run_jobs(
        {"args": arguments(snapshot), "limit": size // 2},
        {"args": arguments(whole), "limit": 2 * size},  # a checkpoint is five times as large
    )
    assert codes == [[1], [1]]
    lines = [line for line in text.splitlines() if line.startswith("Error:")]
    assert len(lines) == 2
    assert "snapshot not written (File too large); make room" in lines[0]
    assert "checkpoint not written or read (File too large" in lines[1]
    assert str(whole / "checkpoints") in lines[1]
    assert "Traceback" not in text
    for folder in (snapshot, whole):
        assert not list(folder.rglob("*.partial"))
        for path, data in before[folder].items():
            assert path.read_bytes() == data or path.name == "last.safetensors"
        Trainer(tiny_config(), folder, CPU).train()
        assert digests(folder) == digests(run_dir) and losses(folder) == losses(run_dir)
        assert names(folder) == names(run_dir)


def poisoned(trainer, *positions):
    """Make the noise of the samples at these positions NaN."""
    batch = trainer.batches.batch

    def poisoned_batch(nimg):
        found = batch(nimg)
        for part in found:
            part.noise[torch.from_numpy(np.isin(part.indices, positions))] = float("nan")
        return found

    trainer.batches.batch = poisoned_batch
    return trainer


def test_a_bad_sample_is_counted_named_and_kept_out_of_the_averages(tmp_path, caplog):
    trainer = poisoned(Trainer(tiny_config("total_nimg=640"), tmp_path / "a", CPU), 77, 70)
    trainer.train()
    first, second = stats(tmp_path / "a")
    for line in (first, second):
        assert line["nonfinite_steps"] == 1 and line["nonfinite_samples"] == 2
        assert line["last_bad_sample"] == 77 and line["last_bad_nimg"] == 64
        assert np.isfinite(line["loss"]) and np.isfinite(line["grad_norm"])
    row = trainer.batches.row(77)
    assert f"the loss of sample 77, image {row} of digits, was not finite" in caplog.text
    assert caplog.text.count("were not finite, set to 0") == 1  # not again in the second tick
    assert trainer.ema.num_refused == 0
    for sigma_rel in trainer.ema.sigma_rels:
        assert all(v.isfinite().all() for v in trainer.ema.state_dict_of(sigma_rel).values())


def test_bad_samples_in_a_row_stop_the_run(tmp_path):
    config = tiny_config("max_bad_steps=2")
    trainer = poisoned(Trainer(config, tmp_path / "a", CPU), 40, 100, 130)  # steps 1, 3 and 4
    with pytest.raises(FloatingPointError, match="in 2 steps in a row .*sample 130, image") as e:
        trainer.train()
    assert "lower optim.ref_lr, or look at that data" in str(e.value)
    assert trainer.nimg == 160
    assert stats(tmp_path / "a")[-1]["nonfinite_steps"] == 3


@pytest.mark.slow
def test_a_rank_that_dies_is_resumed_by_torchrun_and_at_last_takes_the_run_down(run_dir, tmp_path):
    folder = tmp_path / "a"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *("--max-restarts=1", str(HERE / "mortal.py"), *arguments(folder)),
    ]
    begin = time.monotonic()
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(DIE_AT="544,672")
    )
    # less than a minute each, starting included
    assert done.returncode == 1 and time.monotonic() - begin < 2 * 60, done.stderr
    for nimg in (544, 672):
        assert f"RuntimeError: rank 1 dies at {nimg}" in done.stderr
    report = done.stderr[done.stderr.index("FAILED") :]  # of torchrun, with both ranks
    assert "train_step" in report and "rank 1 dies at 672" in report
    np.testing.assert_allclose(losses(folder), losses(run_dir)[:2], rtol=1e-5)
    assert re.search("start +continues at nimg = 320, from ", done.stderr)  # the second attempt


def test_the_last_checkpoint_is_used_after_an_interruption_in_the_next(run_dir, tmp_path):
    folder = tmp_path / "a"
    Trainer(tiny_config("total_nimg=640"), folder, CPU).train()
    shutil.copytree(
        folder / "checkpoints" / "000000000640", folder / "checkpoints" / ".000000000960.partial"
    )
    Trainer(tiny_config(), folder, CPU).train()
    assert digests(folder) == digests(run_dir) and names(folder) == names(run_dir)


def test_a_run_that_never_had_a_finite_gradient_does_not_end_well(tmp_path):
    trainer = Trainer(tiny_config("total_nimg=64"), tmp_path / "a", CPU)
    with torch.no_grad():
        next(trainer.net.parameters()).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="not in any step up to nimg = 64: nothing was"):
        trainer.train()
    assert not (tmp_path / "a" / "last.safetensors").exists()
    assert stats(tmp_path / "a")[-1]["loss"] is None
