"""Snapshots that were moved aside come back when the run continues after them."""

import logging
import shutil

import pytest
import torch

from edm2lite.ema import PowerFunctionEMA, list_snapshots
from edm2lite.ema.doctor import examine


def walk(ema, weights, folder, steps):
    generator = torch.Generator().manual_seed(ema.nimg)
    for _ in range(steps):
        weights["w"] += 0.01 * torch.randn(50, generator=generator)
        ema.update(ema.nimg + 32)
        ema.save_snapshots(folder)
    return copied(ema.state_dict()), weights["w"].clone()


def copied(state):
    averages = {
        length: {name: value.clone() for name, value in values.items()}
        for length, values in state["averages"].items()
    }
    return {**state, "averages": averages}


def begun(folder, state=None, values=None):
    values = torch.zeros(50) if values is None else values.clone()
    ema = PowerFunctionEMA({"w": values}, run="a1", folder=folder, state=state)
    return ema, {"w": values}


@pytest.fixture
def run(tmp_path):
    """(folder with snapshots of six times, the state at the last, digests by name)"""
    ema, weights = begun(tmp_path)
    state, values = walk(ema, weights, tmp_path, 6)
    ema.release()
    return tmp_path, (state, values), digests(tmp_path)


def digests(folder):
    return {info.path.name: info.header.digest for info in list_snapshots(folder)}


def moved_aside(folder, *times):
    """What a second trainer did, which continued from an older checkpoint."""
    (folder / "superseded").mkdir(exist_ok=True)
    paths = [path for t in times for path in sorted(folder.glob(f"*-{t:010d}.safetensors"))]
    return [path.rename(folder / "superseded" / path.name) for path in paths]


def test_snapshots_that_another_process_moved_aside_are_not_missing(run, caplog):
    folder, (state, values), before = run
    assert len(moved_aside(folder, 64, 96)) == 4
    assert examine(folder, [0.08]).findings
    ema, weights = begun(folder, state, values)
    assert digests(folder) == before and "4 archived snapshots up to nimg = 192" in caplog.text
    assert not examine(folder, [0.08]).findings
    walk(ema, weights, folder, 1)
    assert len(list_snapshots(folder)) == 14


def test_the_latest_ones_come_back_without_a_later_one_that_names_them(run):
    folder, (state, values), before = run
    moved_aside(folder, 160, 192)
    begun(folder, state, values)
    assert digests(folder) == before


def test_later_ones_stay_in_the_archive(run):
    folder, _, _ = run
    ema, weights = begun(folder.parent / "other")
    early = walk(ema, weights, None, 2)
    moved_aside(folder, 32, 160, 192)
    begun(folder, *early)
    times = sorted({info.nimg for info in list_snapshots(folder)})
    assert times == [32, 64]
    assert len(list((folder / "superseded").glob("*.safetensors"))) == 8


def test_of_two_versions_the_one_comes_back_that_a_later_snapshot_names(run, tmp_path):
    folder, (state, values), before = run
    ema, weights = begun(tmp_path / "other", values=torch.ones(50))  # another course of that run
    walk(ema, weights, tmp_path / "other", 6)
    for path in moved_aside(folder, 64):
        other = tmp_path / "other" / path.name
        shutil.copyfile(path, path.with_name(f"{path.stem}.2.safetensors"))
        shutil.copyfile(other, path)
    begun(folder, state, values)
    assert digests(folder) == before


def test_of_two_versions_that_nothing_tells_apart_none_comes_back(run, tmp_path, caplog):
    folder, (state, values), before = run
    ema, weights = begun(tmp_path / "other", values=torch.ones(50))
    walk(ema, weights, tmp_path / "other", 6)
    (path, _) = moved_aside(folder, 192)
    shutil.copyfile(tmp_path / "other" / path.name, path.with_name(f"{path.stem}.2.safetensors"))
    begun(folder, state, values)
    assert digests(folder) == {name: d for name, d in before.items() if name != path.name}
    assert "nimg = 192 is missing, and may be one of" in caplog.text and path.stem in caplog.text


def test_snapshots_of_another_run_or_course_stay_in_the_archive(run, tmp_path):
    folder, (state, values), _ = run
    moved_aside(folder, 64)
    with_gap = digests(folder)
    clock = {**state["clock"], "history": [[96, 2]]}
    begun(folder, {**state, "clock": clock}, values)
    assert digests(folder) == with_gap


@pytest.mark.parametrize("damage", [slice(0, -7), slice(0, 40)])
def test_a_damaged_file_in_the_archive_is_left_and_named(run, damage, caplog):
    folder, (state, values), before = run
    for path in moved_aside(folder, 64, 96)[:1]:
        path.write_bytes(path.read_bytes()[damage])
    caplog.set_level(logging.WARNING)
    ema, weights = begun(folder, state, values)
    assert digests(folder) == {name: d for name, d in before.items() if name != path.name}
    assert f"left: {path}" in caplog.text
    walk(ema, weights, folder, 1)


def test_a_damaged_snapshot_with_an_archived_twin_does_not_stop_the_run(run, caplog):
    folder, (state, values), _ = run
    (twin, _) = moved_aside(folder, 96)
    path = folder / twin.name
    path.write_bytes(twin.read_bytes()[:-7])
    begun(folder, copied(state), values)
    assert twin.is_file() and f"{path} " in caplog.text
    late, weights = begun(folder, copied(state), values)
    walk(late, weights, folder, 1)
    assert "truncated" in {finding.state for finding in examine(folder, [0.08]).findings}
