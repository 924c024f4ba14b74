"""Thinning frees space on a full disk, and its log is never torn for good."""

import errno
import json
import os
import shutil

import pytest

from edm2lite.ema import list_snapshots
from edm2lite.ema.doctor import examine
from edm2lite.ema.thinning import remove


@pytest.fixture
def folder(run_dir, tmp_path):
    shutil.copytree(run_dir / "snapshots", tmp_path / "snapshots")
    return tmp_path / "snapshots"


def fill_disk(folder, monkeypatch, spare=0):
    """From now on lines cannot be synced, and are torn, unless ``spare`` snapshots are gone."""
    sync, most = os.fsync, len(list(folder.glob("*.safetensors"))) - spare

    def fsync(file):
        if len(list(folder.glob("*.safetensors"))) >= most:
            os.ftruncate(file, os.fstat(file).st_size - 9)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    monkeypatch.setattr("edm2lite.jsonlines.os.fsync", fsync)


def test_thinning_frees_space_on_a_full_disk(folder, monkeypatch):
    (folder / "thinned.jsonl").write_text('{"nimg": 16, "gamma": 6.5}\n')
    infos = list_snapshots(folder)
    fill_disk(folder, monkeypatch)
    size = infos[2].path.stat().st_size
    assert remove(infos[2:5]) == 3 * size
    assert len(list_snapshots(folder)) == len(infos) - 3
    lines = (folder / "thinned.jsonl").read_text().splitlines()
    written = [json.loads(line) for line in lines if line.endswith("}")]
    assert [line.get("file") for line in written] == [None, *(i.path.name for i in infos[2:5])]
    assert examine(folder, [0.08]).num_thinned == 4


def test_a_disk_that_stays_full_is_named_with_the_log(folder, monkeypatch):
    infos = list_snapshots(folder)
    fill_disk(folder, monkeypatch, spare=9)
    with pytest.raises(OSError, match="No space left") as caught:
        remove(infos[:3])
    assert caught.value.filename == str(folder / "thinned.jsonl")
    assert len(list_snapshots(folder)) == len(infos) - 1  # at most one goes without its record
