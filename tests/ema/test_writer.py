"""Files are written in order, and a failure loses none."""

import errno
import subprocess
import sys
import threading
import time

import pytest

from edm2lite.ema.writer import BackgroundWriter


def test_jobs_run_in_the_order_given():
    writer, done = BackgroundWriter(), []
    for i in range(50):
        writer.submit(lambda i=i: (time.sleep(0.001 * (i % 3)), done.append(i)))
    writer.flush()
    assert done == list(range(50))


def test_submit_does_not_wait():
    writer, gate, done = BackgroundWriter(), threading.Event(), []
    writer.submit(gate.wait)
    writer.submit(lambda: done.append(1))
    assert not done
    gate.set()
    writer.flush()
    assert done == [1]


def test_job_that_met_a_full_disk_is_tried_again_before_later_ones():
    writer, done, full = BackgroundWriter(), [], [True]

    def first():
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        done.append("first")

    writer.submit(first)
    writer.submit(lambda: done.append("second"))
    with pytest.raises(OSError, match="No space left"):
        writer.flush()
    with pytest.raises(OSError, match="No space left"):
        writer.flush()
    assert not done
    full[0] = False
    writer.flush()
    assert done == ["first", "second"]


def test_job_that_is_wrong_is_reported_once_and_dropped():
    writer, done = BackgroundWriter(), []

    def wrong():
        raise ValueError("too large for float16")

    writer.submit(wrong)
    writer.submit(lambda: done.append(1))
    with pytest.raises(ValueError, match="too large"):
        writer.flush()
    writer.flush()
    assert done == [1]


def test_normal_exit_of_the_interpreter_waits_for_the_files(tmp_path):
    """On a disk that takes 0.3 s to flush, nothing is written yet when the script ends."""
    code = f"""
import os, pathlib, time, torch
from edm2lite.ema import PowerFunctionEMA
os.fsync = lambda file: time.sleep(0.3)
ema = PowerFunctionEMA({{"a": torch.zeros(3)}})
ema.update(10)
ema.save_snapshots({str(tmp_path)!r}, background=True)
print(len(list(pathlib.Path({str(tmp_path)!r}).glob("ema-*.safetensors"))))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.strip() == "0", ran.stderr
    assert len(list(tmp_path.glob("ema-*.safetensors"))) == 2
