"""Ctrl-C in training: the first one ends the run with a checkpoint, the second one at once."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from tiny_run import tiny_config
from training_runs import arguments, digests, environment, losses, names, run_jobs

from edm2lite.training.trainer import Trainer

RARELY = "checkpoint_nimg=1280"
CPU = torch.device("cpu")


def errors(text):
    return [line for line in text.splitlines() if line.startswith("Error: ")]


def test_ctrl_c_keeps_the_work_and_the_second_one_says_what_is_left(run_dir, tmp_path):
    once, none, old = (tmp_path / name for name in ("once", "none", "old"))
    codes, text = run_jobs(
        {"args": arguments(once, RARELY), "interrupt_at": 160},
        {"args": arguments(once, RARELY)},
        {"args": arguments(none, RARELY), "interrupt_at": 160, "times": 2},
        {"args": arguments(old), "interrupt_at": 480, "times": 2},
        {"args": arguments(old)},
    )
    assert codes == [[130], [0], [130], [130], [0]], text
    first, second, third = errors(text)
    saved = once / "checkpoints" / "000000000192"
    assert first == (
        f"Error: stopped for SIGINT at nimg = 192 of 1280, with a checkpoint in {saved}; the same"
        " command continues from it"
    )
    assert saved.is_dir()
    assert "interrupted: this step ends, with a checkpoint; Ctrl-C again stops at once" in text
    assert second == (
        f"Error: interrupted; there is no checkpoint in {none}: the same command starts over"
    )
    assert not (none / "checkpoints").exists()
    newest = old / "checkpoints" / "000000000320"
    assert third == (
        f"Error: interrupted; the same command continues from the newest checkpoint, {newest}"
    )
    for folder in (once, old):
        assert digests(folder) == digests(run_dir) and losses(folder) == losses(run_dir)


def test_ctrl_c_at_any_moment_is_one_line_and_exit_code_130(run_dir, tmp_path):
    folder = tmp_path / "a"
    moments = (
        "edm2lite.training.config:upgraded_run",
        "edm2lite.training.preparation:open_dataset",
        "edm2lite.training.run_folder:claim_folder",
        "edm2lite.training.trainer:state_of",
        "torch.distributed.checkpoint.filesystem:FileSystemReader.read_data",
        "edm2lite.ema.stale:archive",
        "edm2lite.training.signals:StopSignal.__enter__",
        "edm2lite.training.outputs:save_tensors",
    )
    shutil.copytree(run_dir, folder)
    shutil.rmtree(folder / "checkpoints" / "000000001280")
    (folder / "last.safetensors").unlink()
    codes, text = run_jobs(
        *({"args": arguments(folder), "interrupt_in": moment} for moment in moments)
    )
    assert codes == [[130]] * len(moments), text
    assert len(errors(text)) == len(moments) and "Traceback" not in text
    assert all("interrupted; the same command continues from" in line for line in errors(text))
    assert "ended while it wrote there" not in text  # all were released
    codes, text = run_jobs({"args": arguments(folder)})
    assert codes == [[0]] and digests(folder) == digests(run_dir)
    assert names(folder) == names(run_dir) and losses(folder) == losses(run_dir)


def test_ctrl_c_while_modules_are_imported(tmp_path):
    code = (
        "import os, runpy, signal, sys\n"
        "def hook(event, args):\n"
        "    if event == 'import' and args[0] == 'torch.nn':\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.addaudithook(hook)\n"
        "runpy.run_module('edm2lite.training', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", code, *arguments(tmp_path / "a")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 130 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.startswith("Error: interrupted; there is no checkpoint in")


@pytest.mark.slow
def test_ctrl_c_reaches_all_ranks_and_is_said_once(run_dir, tmp_path):
    folder = tmp_path / "a"
    codes, text = run_jobs(
        {"args": arguments(folder, RARELY, "total_nimg=640"), "ranks": 2, "interrupt_at": 160},
        {"args": arguments(folder, "total_nimg=640"), "ranks": 2},
        {"args": arguments(tmp_path / "b"), "ranks": 2, "interrupt_at": 160, "times": 2},
    )
    assert codes == [[130, 130], [0, 0], [130, 130]], text
    first, second = errors(text)
    assert f"with a checkpoint in {folder / 'checkpoints' / '000000000224'}" in first
    assert "there is no checkpoint in" in second
    assert losses(folder) == pytest.approx(losses(run_dir)[:2], rel=1e-5)


def started(command, folder):
    """A program that has a default SIGINT and has taken some steps in a long run."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which programs inherit
    try:
        process = subprocess.Popen(
            [*command, *arguments(folder, "total_nimg=640000", "checkpoint_nimg=640000")],
            stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    while not (folder / "stats.jsonl").exists() and process.poll() is None:
        time.sleep(0.02)
    return process


def test_ctrl_c_at_a_command_in_a_shell(tmp_path):
    folder = tmp_path / "a"
    process = started([sys.executable, "-m", "edm2lite.training"], folder)
    os.killpg(process.pid, signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 130, text
    (saved,) = (folder / "checkpoints").iterdir()
    assert f"with a checkpoint in {saved}; the same command continues from it" in errors(text)[-1]
    assert "Traceback" not in text


@pytest.mark.slow
def test_ctrl_c_at_torchrun(tmp_path):
    folder = tmp_path / "a"
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    process = started([sys.executable, *torchrun, "-m", "edm2lite.training"], folder)
    os.killpg(process.pid, signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert process.returncode != 0
    (saved,) = (folder / "checkpoints").iterdir()
    assert [line for line in errors(text) if str(saved) in line], text


def test_a_script_that_trains_does_not_go_on_after_ctrl_c(tmp_path):
    """In Python it is an exception as ever, once there is a checkpoint."""
    trainer = Trainer(tiny_config(RARELY), tmp_path / "a", CPU)
    step, before = trainer.train_step, signal.getsignal(signal.SIGINT)

    def interrupted():
        if trainer.nimg == 64:
            os.kill(os.getpid(), signal.SIGINT)
        return step()

    trainer.train_step = interrupted
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt, match="checkpoint in .*000000000096; the same"):
            trainer.train()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_process_that_ignores_ctrl_c_still_does(tmp_path, caplog):
    """As those that a shell starts in the background."""
    caplog.set_level(logging.INFO, "edm2lite")
    trainer = Trainer(tiny_config("total_nimg=96", "checkpoint_nimg=96"), tmp_path / "a", CPU)
    step = trainer.train_step
    trainer.train_step = lambda: (os.kill(os.getpid(), signal.SIGINT), step())[1]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        trainer.train()
    finally:
        signal.signal(signal.SIGINT, before)
    assert trainer.nimg == 96 and trainer.stopped_by is None
