"""Folders that hold two courses of one run, or that two runs or ranks would write to."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from edm2lite.ema import PowerFunctionEMA, list_snapshots, reconstruct
from edm2lite.ema.doctor import examine

EVERY = 10  # steps between snapshots


def train(ema, weights, folder, steps, batch=32, drift=0.01, keep=None):
    """Updates of a walk with snapshots; the state of the tracker after ``keep`` updates."""
    generator = torch.Generator().manual_seed(ema.nimg)
    state = None
    for step in range(1, steps + 1):
        weights["w"] += drift * torch.randn(200, generator=generator)
        ema.update(ema.nimg + batch)
        if step % EVERY == 0:
            ema.save_snapshots(folder)
        if step == keep:
            averages = {
                length: {name: value.clone() for name, value in values.items()}
                for length, values in ema.state_dict()["averages"].items()
            }
            state = {"averages": averages, "clock": ema.state_dict()["clock"]}
            state = {"ema": state, "weights": weights["w"].clone()}
    return state


def rewound(state, folder=None):
    """A tracker that continues from an earlier state, and its weights."""
    weights = {"w": state["weights"].clone()}
    ema = PowerFunctionEMA(weights, folder=folder, state=state["ema"])
    return ema, weights


def start(folder=None, run=None):
    weights = {"w": torch.randn(200, generator=torch.Generator().manual_seed(1))}
    return PowerFunctionEMA(weights, folder=folder, run=run), weights


def error_of(folder, ema, sigma_rel):
    """(predicted, actual) error of a tracked length rebuilt from another pair."""
    result = reconstruct(folder, sigma_rel=sigma_rel, max_error=np.inf)
    truth = ema.state_dict_of(sigma_rel)["w"]
    actual = float((result.state_dict["w"] - truth).norm() / truth.norm())
    return result.predicted_error, actual


@pytest.mark.parametrize("at_construction", [True, False])
@pytest.mark.parametrize("batch", [32, 48])
def test_snapshots_of_an_abandoned_course_are_not_mixed_in(tmp_path, at_construction, batch):
    """Saved at step 100, on to 200, back to the checkpoint of 100 and on to 150."""
    ema, weights = start()
    state = train(ema, weights, tmp_path, 200, keep=100)
    ema, weights = rewound(state, tmp_path if at_construction else None)
    direct = PowerFunctionEMA(weights, [0.08], start_nimg=ema.nimg)
    train(ema, weights, tmp_path, 50, batch=batch)
    infos = list_snapshots(tmp_path)
    assert infos[-1].nimg == ema.nimg == 3200 + 50 * batch
    assert infos[-1].history == tuple((s, n) for s, n in ema.history)
    gone = sorted(path.name for path in (tmp_path / "superseded").iterdir())
    assert len(gone) == 20 and gone[0] == "ema-0.05000-0000003520.safetensors"
    assert not examine(tmp_path, [0.08]).findings
    assert direct.nimg == 3200


def test_a_tracker_that_goes_back_itself_archives_what_it_did_since(tmp_path):
    ema, weights = start()
    state = train(ema, weights, tmp_path, 60, keep=30)
    weights["w"].copy_(state["weights"])
    ema.load_state_dict(state["ema"])
    train(ema, weights, tmp_path, 10)
    assert [info.nimg for info in list_snapshots(tmp_path)][::2] == [320, 640, 960, 1280]


def fork(tmp_path, batch):
    """A folder with two courses, as it was left by trackers that archived nothing."""
    ema, weights = start()
    state = train(ema, weights, tmp_path / "old", 200, keep=100)
    ema.release()
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    ema, weights = rewound(state)
    train(ema, weights, tmp_path / "new", 50, batch=batch, drift=0.05)
    ema.release()
    shutil.rmtree(tmp_path / "new" / "superseded")
    shutil.copytree(tmp_path / "old", tmp_path / "mixed")
    for path in sorted((tmp_path / "new").iterdir()):
        target = tmp_path / "mixed" / path.name
        shutil.copyfile(path, target)
        os.utime(target)
    return tmp_path / "mixed", sorted(path.name for path in (tmp_path / "new").iterdir())


@pytest.mark.parametrize("batch, reason", [(48, "different updates"), (32, "other values")])
def test_two_courses_of_a_run_in_one_folder_are_not_called_intact(tmp_path, batch, reason):
    mixed, kept = fork(tmp_path, batch)
    with pytest.raises(ValueError, match=rf"must be of one course .*{reason}.*older checkpoint"):
        list_snapshots(mixed)
    with pytest.raises(ValueError, match="must be of one course"):
        reconstruct(mixed, sigma_rel=0.1)
    report = examine(mixed, [0.08])
    states = {finding.path.name: finding.state for finding in report.findings}
    assert set(states.values()) == {"other course"}
    assert sorted(info.path.name for info in report.intact) == kept
    for name in states:
        (mixed / name).unlink()
    assert list_snapshots(mixed)[-1].nimg == 3200 + 50 * batch


def test_histories_alone_show_a_fork_in_files_without_links(tmp_path, monkeypatch):
    monkeypatch.setattr("edm2lite.ema.writer.link_text", lambda nimg, digest: '[0,""]')
    monkeypatch.setattr("edm2lite.ema.course.link", lambda info: None)
    monkeypatch.setattr("edm2lite.ema.stale.link", lambda info: None)
    mixed, kept = fork(tmp_path, 48)
    with pytest.raises(ValueError, match="they saw different updates"):
        list_snapshots(mixed)
    assert sorted(info.path.name for info in examine(mixed, [0.08]).intact) == kept


def test_one_course_with_gaps_and_changing_batches_is_in_order(tmp_path):
    ema, weights = start()
    for batch in (32, 48, 32):
        train(ema, weights, tmp_path, 30, batch=batch)
    paths = sorted(tmp_path.glob("*.safetensors"))
    for path in paths[3:6]:
        path.unlink()
    assert len(list_snapshots(tmp_path)) == len(paths) - 3


def test_a_saved_run_continues_to_the_same_bytes(tmp_path):
    """The link to the snapshot before is that of an uninterrupted run."""
    ema, weights = start(run="a1")
    for _ in range(2):
        train(ema, weights, tmp_path / "whole", 30)
    ema, weights = start(run="a1")
    state = train(ema, weights, tmp_path / "parts", 30, keep=30)
    ema, weights = rewound(state, tmp_path / "parts")
    train(ema, weights, tmp_path / "parts", 30)
    whole, parts = (sorted((tmp_path / name).glob("*.safetensors")) for name in ("whole", "parts"))
    assert [path.read_bytes() for path in whole] == [path.read_bytes() for path in parts]
    infos = list_snapshots(tmp_path / "parts")
    assert "previous" not in infos[0].header.metadata
    assert infos[2].header.metadata["previous"] == f'[320,"{infos[0].header.digest}"]'


def test_a_folder_of_another_run_is_refused_before_training(tmp_path):
    ema, weights = start(tmp_path)
    state = train(ema, weights, None, EVERY, keep=EVERY)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=f"holds run {ema.run} and this is run"):
        start(tmp_path)
    assert sorted(tmp_path.iterdir()) == before
    again, weights = rewound(state, tmp_path)
    train(again, weights, None, EVERY)
    assert len(list_snapshots(tmp_path)) == 4


def test_a_tracker_without_a_folder_says_so_when_it_saves():
    ema, _ = start()
    ema.update(32)
    with pytest.raises(ValueError, match="needs a folder, here or at construction"):
        ema.save_snapshots()


RANK = """
import os, sys, torch
from torch import distributed, nn
from edm2lite.ema import PowerFunctionEMA
distributed.init_process_group("gloo")
model = nn.parallel.DistributedDataParallel(nn.Linear(2, 1))
ema = PowerFunctionEMA(model, folder=sys.argv[1] if sys.argv[2] == "early" else None)
ema.update(64)
distributed.barrier()
try:
    ema.save_snapshots(sys.argv[1])
    print("saved")
except ValueError as error:
    print("one line:", error)
distributed.barrier()
"""


@pytest.mark.parametrize("when", ["early", "late"])
def test_saving_on_every_rank_of_a_loop_gets_one_clear_line(tmp_path, when):
    (tmp_path / "rank.py").write_text(RANK)
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    done = subprocess.run(
        [sys.executable, *launch, str(tmp_path / "rank.py"), str(tmp_path / "s"), when],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert sorted(line.split(":")[0] for line in said) == ["one line", "saved"]
    assert any("call save_snapshots() on rank 0 alone" in line for line in said)
    assert len(list_snapshots(tmp_path / "s")) == 2


def test_a_dead_process_does_not_keep_its_folder(tmp_path):
    script = (
        "import sys, torch, os, signal\nfrom edm2lite.ema import PowerFunctionEMA\n"
        "ema = PowerFunctionEMA({'w': torch.ones(3)}, folder=sys.argv[1], run='a1')\n"
        "ema.update(64)\nema.save_snapshots()\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)])
    assert done.returncode == -9
    PowerFunctionEMA({"w": torch.ones(3)}, run="a1", folder=tmp_path)
