"""torchrun is killed, and its processes stop with a checkpoint."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_runs import HERE, arguments, environment, losses

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_processes_whose_torchrun_was_killed_stop_with_a_checkpoint(run_dir, tmp_path):
    folder, log = tmp_path / "a", tmp_path / "log"
    long = arguments(folder, "total_nimg=640000", "checkpoint_nimg=640000")
    with open(log, "w") as stderr:
        torchrun = subprocess.Popen(
            [sys.executable, *TORCHRUN, str(HERE / "orphan.py"), *long],
            stderr=stderr, env=environment(),
        )  # fmt: skip
        while not (folder / "stats.jsonl").exists() and torchrun.poll() is None:
            time.sleep(0.02)
        workers = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
        torchrun.kill()
        torchrun.wait()
        end = time.monotonic() + 60
        while any(map(lives, workers)) and time.monotonic() < end:
            time.sleep(0.05)
    text = log.read_text()
    assert len(workers) == 2 and not any(map(lives, workers)), text
    assert text.count("torchrun has died; its processes stop") == 1 and "Traceback" not in text
    (saved,) = (folder / "checkpoints").iterdir()
    assert f"with a checkpoint in {saved}; the same command continues" in text
    assert not list(folder.rglob(".lock")) and not (folder / "last.safetensors").exists()
    assert losses(folder)[0] == pytest.approx(losses(run_dir)[0], rel=1e-5)
