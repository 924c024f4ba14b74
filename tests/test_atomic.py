"""Files under construction: names of their own, locks, what killed writers leave behind."""

import errno
import os
import subprocess
import sys

import pytest

from edm2lite import atomic
from edm2lite.atomic import remove_abandoned, replacing, sync

HOLD = """
import sys; from pathlib import Path; from edm2lite.atomic import replacing
with replacing(Path(sys.argv[1])) as file:
    file.write("other"); print("open", flush=True); input()
"""


@pytest.fixture
def other(tmp_path):
    """A process in the middle of writing result.txt."""
    command = [sys.executable, "-c", HOLD, tmp_path / "result.txt"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"open\n"
        yield process
        process.kill()


def test_two_processes_write_one_file_and_neither_fails(tmp_path, other):
    with replacing(tmp_path / "result.txt") as file:
        file.write("mine")
    assert (tmp_path / "result.txt").read_text() == "mine"
    other.communicate(b"\n")
    assert other.returncode == 0
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("result.txt", "other")]


def test_what_a_killed_writer_left_is_removed_by_the_next_one(tmp_path, other):
    (half,) = tmp_path.iterdir()
    remove_abandoned(tmp_path)
    assert half.exists()  # its writer lives
    other.kill()
    other.wait()
    with replacing(tmp_path / "result.txt") as file:
        file.write("mine")
    assert [p.name for p in tmp_path.iterdir()] == ["result.txt"]


def test_files_of_others_are_left_where_nothing_can_be_locked(tmp_path, monkeypatch):
    def cannot(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(atomic.fcntl, "flock", cannot)
    (tmp_path / ".result.txt.00.partial").write_text("of another host")
    with replacing(tmp_path / "result.txt") as file:
        file.write("mine")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".result.txt.00.partial", "result.txt"]


def test_a_link_with_the_name_of_a_file_under_construction_is_not_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in (".result.txt.partial", ".result.txt.00000000.partial"):
        (tmp_path / name).symlink_to(victim)
    names = iter(["00000000", "11111111"])
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda size: next(names))
    with pytest.raises(FileExistsError), replacing(tmp_path / "result.txt") as file:
        file.write("mine")
    with replacing(tmp_path / "result.txt") as file:
        file.write("mine")
    assert victim.read_text() == "precious"
    assert (tmp_path / "result.txt").read_text() == "mine"


def test_a_file_system_that_cannot_sync_folders_is_written_to(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", fsync)
    with replacing(tmp_path / "result.txt") as file:
        file.write("mine")
    sync(tmp_path)

    def failing(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(atomic.os, "fsync", failing)
    with pytest.raises(OSError, match="error") as caught:
        sync(tmp_path)
    assert caught.value.filename == str(tmp_path)
