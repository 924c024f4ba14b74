"""Interrupted updates, numbers out of range, threads, forks and copies of the tracker."""

import copy
import math
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

from edm2lite.ema import PowerFunctionEMA, list_snapshots
from edm2lite.tensorfile import load_tensors


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


def interrupted(monkeypatch, after):
    """Make the next update stop after so many of its operations, as by Ctrl-C."""
    calls, lerp = [], torch.Tensor.lerp_

    def lerp_(self, *arguments):
        calls.append(None)
        if len(calls) > after:
            raise KeyboardInterrupt
        return lerp(self, *arguments)

    monkeypatch.setattr(torch.Tensor, "lerp_", lerp_)


def test_an_interrupted_update_is_not_taken_for_a_whole_one(tmp_path, monkeypatch):
    theta = {name: torch.full((2**17,), 1.0) for name in "abc"}
    ema = PowerFunctionEMA(theta)
    ema.update(10)
    state = copy.deepcopy(ema.state_dict())
    theta["a"].add_(1)
    with monkeypatch.context() as patch:
        interrupted(patch, after=3)
        with pytest.raises(KeyboardInterrupt):
            ema.update(20)
    assert ema.history == [[10, 1]] and ema.nimg == 10
    for use in (
        lambda: ema.update(30),
        lambda: ema.save_snapshots(tmp_path),
        lambda: ema.state_dict(),
        lambda: ema.state_dict_of(0.05),
    ):
        with pytest.raises(RuntimeError, match=r"interrupted.*continue from a checkpoint"):
            use()
    assert not list(tmp_path.iterdir())
    ema.load_state_dict(state)
    ema.update(20)
    assert ema.history == [[10, 2]]


def test_an_image_count_beyond_64_bits_is_refused_before_it_is_on_record():
    ema = PowerFunctionEMA({"a": torch.zeros(3)})
    with pytest.raises((OverflowError, RuntimeError, TypeError)):
        ema.update(2**70)
    assert ema.history == []
    ema.update(10)
    assert ema.history == [[10, 1]]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_yet_are_refused_at_construction(bad):
    with pytest.raises(ValueError, match="must be finite when averaging begins"):
        PowerFunctionEMA({"a": torch.tensor([0.0, bad])})


@pytest.mark.parametrize(
    "dtype, first, second",
    [(torch.float64, 0.0, 1e300), (torch.float32, -3e38, 3e38), (torch.float64, 0.0, 3e38)],
)
def test_numbers_too_large_for_the_averages_are_refused_like_nan(dtype, first, second):
    theta = {"a": torch.zeros(3, dtype=dtype)}
    ema = PowerFunctionEMA(theta)
    ema.update(10)
    for value, nimg in ((first, 20), (second, 30)):
        theta["a"].fill_(value)
        ema.update(nimg)
    assert ema.num_refused == (2 if first else 1)
    assert ema.state_dict_of(0.05)["a"].isfinite().all()
    assert PowerFunctionEMA(theta, dtype=torch.float64).num_refused == 0


def test_large_numbers_whose_squares_overflow_are_averaged():
    theta = {"a": torch.full((3,), 1e30)}
    ema = PowerFunctionEMA(theta)
    ema.update(10)
    assert ema.num_refused == 0
    torch.testing.assert_close(ema.state_dict_of(0.05)["a"], theta["a"])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s["averages"]["0.05"]["a"].fill_(math.nan), "must be finite"),
        (lambda s: s["clock"].update(nimg=-5), "must not be before its start"),
    ],
)
def test_a_state_that_cannot_be_is_refused_and_changes_nothing(change, message):
    theta = {"a": torch.ones(3)}
    ema = PowerFunctionEMA(theta)
    ema.update(10)
    state = copy.deepcopy(ema.state_dict())
    change(state)
    with pytest.raises(ValueError, match=message):
        ema.load_state_dict(state)
    assert ema.nimg == 10 and ema.state_dict_of(0.05)["a"].equal(torch.ones(3))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda ema: pickle.loads(pickle.dumps(ema))], ids=["copy", "pickle"]
)
def test_a_copied_tracker_goes_on_by_itself(copied):
    net = small_net()
    net.ema = PowerFunctionEMA(net[0])  # held by the module itself
    net.ema.update(10)
    again = copied(net)
    with torch.no_grad():
        again[0].weight.add_(1)
    again.ema.update(20)
    assert net.ema.history == [[10, 1]] and again.ema.history == [[10, 2]]
    direct = PowerFunctionEMA(weights := {"weight": net[0].weight.detach().clone()})
    direct.update(10)
    weights["weight"].add_(1)
    direct.update(20)
    for sigma_rel in (0.05, 0.10):
        found = again.ema.state_dict_of(sigma_rel)["weight"]
        torch.testing.assert_close(found, direct.state_dict_of(sigma_rel)["weight"])
        assert not found.equal(net.ema.state_dict_of(sigma_rel)["weight"])


def test_a_parameter_replaced_within_applied_does_not_disable_the_tracker():
    net = small_net()
    ema = PowerFunctionEMA(net)
    ema.update(10)
    replaced = net[0].weight
    with pytest.raises(ValueError, match="must keep its shape"), ema.applied(0.05):
        net[0].weight = nn.Parameter(torch.zeros(7, 7))
    net[0].weight = replaced
    ema.update(20)
    assert ema.history == [[10, 2]]


def test_a_snapshot_saved_while_another_thread_updates_is_of_one_moment(tmp_path):
    theta = {name: torch.zeros(2**18) for name in "abcd"}
    ema = PowerFunctionEMA(theta, [0.05])
    ema.update(1)
    stop = threading.Event()

    def update():
        while not stop.is_set():
            for value in theta.values():
                value.add_(1)
            ema.update(ema.nimg + 1)

    thread = threading.Thread(target=update)
    thread.start()
    for _ in range(12):
        ema.save_snapshots(tmp_path, background=True)
    stop.set()
    thread.join()
    ema.flush()
    for info in list_snapshots(tmp_path):
        tensors, _ = load_tensors(info.path)
        assert len({float(t[0]) for t in tensors.values()}) == 1
        assert all((t == t[0]).all() for t in tensors.values())


CHILD = """
import os, sys, threading, torch
from edm2lite.ema import PowerFunctionEMA, writer
ema = PowerFunctionEMA({"a": torch.zeros(1000)})
ema.update(10)
hold, write = threading.Event(), writer.write_snapshot
writer.write_snapshot = lambda *a, **k: (hold.wait(), write(*a, **k))[1]
ema.save_snapshots(sys.argv[1], background=True)
if os.fork() == 0:
    ema.flush()  # nothing of its own
    os._exit(7)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
hold.set()
ema.flush()
"""


def test_a_forked_child_does_not_wait_for_a_thread_that_it_has_not(tmp_path):
    subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], check=True, timeout=60)
    assert len(list_snapshots(tmp_path)) == 2


def test_files_lost_at_the_end_of_a_program_are_reported(tmp_path):
    code = f"""
import errno, os, torch
from edm2lite.ema import PowerFunctionEMA
ema = PowerFunctionEMA({{"a": torch.zeros(1000)}})
ema.update(10)
def full(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
os.fsync = full
ema.save_snapshots({str(tmp_path)!r}, background=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "the program ends with 2 files not written" in done.stderr
    assert "No space left" in done.stderr
