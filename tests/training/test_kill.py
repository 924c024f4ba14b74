"""SIGKILL at any moment, and the run still ends with the same files, bit for bit."""

import random
import signal
import subprocess
import sys
import time

import pytest
from training_runs import arguments, digests, environment, losses, names, run_jobs


@pytest.mark.slow
def test_killed_at_twenty_moments_ends_with_the_same_files(run_dir, tmp_path):
    folder = tmp_path / "killed"
    draw = random.Random(0)
    # Kills lie before a file operation (opening, renaming, removing), so that most of them hit the
    # writing of a snapshot or checkpoint; a start and a step to the next checkpoint make about 40.
    jobs = [{"args": arguments(folder), "kill_at": draw.randint(5, 45)} for _ in range(20)]
    codes, text = run_jobs(*jobs, {"args": arguments(folder)})
    killed = sum(code == [-signal.SIGKILL] for code in codes)
    assert killed >= 18 and codes[-1] == [0], (codes, text)
    assert digests(folder) == digests(run_dir)
    assert losses(folder) == losses(run_dir)
    assert names(folder) == names(run_dir)


@pytest.mark.slow
def test_killed_after_random_times_ends_with_the_same_files(run_dir, tmp_path):
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "edm2lite.training", *arguments(folder)]
    draw = random.Random(1)
    for _ in range(2):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment())
        while not (folder / "config.yaml").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.uniform(0.1, 0.9))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, stderr=subprocess.DEVNULL, env=environment()).returncode == 0
    assert digests(folder) == digests(run_dir)
    assert losses(folder) == losses(run_dir)
    assert names(folder) == names(run_dir)
