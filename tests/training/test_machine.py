"""The number of threads decides the last bits of a run: it is that of its checkpoint."""

import json
import logging

import pytest
import torch
from tiny_run import tiny_config
from training_runs import digests

from edm2lite.training import machine, manifest
from edm2lite.training.trainer import Trainer


@pytest.fixture
def threads():
    """Set the number of threads; it is as before afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def train(folder, *changes):
    Trainer(tiny_config(*changes), folder, torch.device("cpu")).train()


def newest(folder):
    return manifest.finished(folder / "checkpoints")[-1]


def test_a_run_continues_with_the_threads_that_it_began_with(tmp_path, threads, caplog):
    threads(1)
    train(tmp_path / "whole", "total_nimg=960")
    train(tmp_path / "half", "total_nimg=640")
    assert json.loads((newest(tmp_path / "half") / "machine.json").read_text())["threads"] == 1
    threads(2)
    with caplog.at_level(logging.INFO, "edm2lite"):
        train(tmp_path / "half", "total_nimg=960")
    assert "computing with 1 threads, as this run did before" in caplog.text
    assert digests(tmp_path / "half") == digests(tmp_path / "whole")


def test_threads_that_are_asked_for_are_taken_with_a_warning(tmp_path, threads, caplog):
    threads(1)
    train(tmp_path, "total_nimg=320")
    train(tmp_path, "total_nimg=640", "threads=2")
    assert json.loads((newest(tmp_path) / "machine.json").read_text())["threads"] == 2
    assert torch.get_num_threads() == 1  # afterwards, as before
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "threads 1, now 2" in record.getMessage() and str(tmp_path) in record.getMessage()
    assert "\n" not in record.getMessage()
    caplog.clear()
    threads(2)
    machine.resume(newest(tmp_path), 2, torch.device("cpu"))  # it has been said
    assert not caplog.text
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        tiny_config("threads=0")


def test_another_processor_is_named_and_an_earlier_checkpoint_says_nothing(
    tmp_path, threads, caplog
):
    here = machine.describe()
    machine.resume(tmp_path, None, torch.device("cpu"))
    assert not caplog.text
    machine.record(tmp_path, {**here, "instructions": "ENIAC", "torch": "0.0"})
    machine.resume(tmp_path, None, torch.device("cuda"))
    assert not caplog.text
    machine.resume(tmp_path, None, torch.device("cpu"))
    assert f"instructions ENIAC, now {here['instructions']}; torch 0.0, now" in caplog.text
