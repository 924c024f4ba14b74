"""Processes whose torchrun was killed stop; Ctrl-C is Ctrl-C whatever was made of it."""

import os
import signal
import subprocess
import sys
import time

import click
import pytest
from click.testing import CliRunner

from edm2lite import processes
from edm2lite.tools._cli import user_errors

LAUNCH = """
import os, subprocess, sys
run = {{"TORCHELASTIC_RUN_ID": "a"}} if {is_torchrun} else {{}}
subprocess.Popen([sys.executable, "-c", sys.argv[1]], env={{**os.environ, **run}})
input()
"""
WORK = """
import os, signal, time
from edm2lite import processes
from edm2lite.tools._cli import user_errors
processes.POLL, processes.GRACE = 0.05, 0.3
{setup}
@user_errors
def command():
    print(os.getpid(), flush=True)
    time.sleep(60)
command()
"""


def launched(setup="", is_torchrun=True):
    """(the parent, process number of a command of ours that it started)"""
    parent = subprocess.Popen(
        [sys.executable, "-c", LAUNCH.format(is_torchrun=is_torchrun), WORK.format(setup=setup)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    return parent, int(parent.stdout.readline())


def lives(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ends(pid, seconds=10.0):
    end = time.monotonic() + seconds
    while lives(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not lives(pid)


@pytest.mark.parametrize("setup", ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"])
def test_a_command_whose_torchrun_was_killed_stops(setup):
    parent, pid = launched(setup)
    assert not ends(pid, 0.5)
    parent.kill()
    assert ends(pid)
    assert "torchrun has died" in parent.communicate()[1]


def test_a_command_whose_shell_has_ended_goes_on():
    parent, pid = launched(is_torchrun=False)
    parent.kill()
    try:
        assert not ends(pid, 1.0)
    finally:
        os.kill(pid, signal.SIGKILL)
        parent.communicate()


def swallowing():
    """As a compiled module does when Ctrl-C meets its import."""
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    except KeyboardInterrupt:
        raise ImportError("numpy._core.multiarray failed to import") from None


def test_ctrl_c_that_was_turned_into_another_error_is_still_one():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), processes.interruptible():
            swallowing()
        done = CliRunner().invoke(click.command()(user_errors(swallowing)))
        assert done.exit_code == 130 and "Error: interrupted; the same command" in done.output
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with pytest.raises(ImportError), processes.interruptible():
            raise ImportError("no module")
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_process_that_ignores_ctrl_c_still_does():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with processes.interruptible():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
